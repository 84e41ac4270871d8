//! What an agent tells of its peers; all of it is zero on a node that shares nothing.

use crate::metrics::{Page, names};
use crate::peer::counters::{Traffic, Why};
use crate::peer::datagram::Received;
use crate::peer::membership::MembershipStatus;

/// Who is there.
pub(super) fn members(page: &mut Page, status: Option<&MembershipStatus>) {
    let members = status.map_or(&[][..], |status| &status.members);
    page.gauge(names::PEER_MEMBERS, members.len() as u64);
    let own = members.iter().find(|member| status.is_some_and(|status| status.own == member.id));
    page.gauge(names::PEER_WEIGHT, own.map_or(0, |own| own.weight.0.into()));
    let received = status.map(|status| status.datagrams).unwrap_or_default();
    page.counters(names::PEER_DATAGRAMS, "outcome", outcomes(received));
}

fn outcomes(received: Received) -> [(&'static str, u64); 8] {
    let Received { taken, oversized, malformed, version, key, misdirected, forged, replayed } =
        received;
    [
        ("taken", taken),
        ("oversized", oversized),
        ("malformed", malformed),
        ("version", version),
        ("key", key),
        ("misdirected", misdirected),
        ("forged", forged),
        ("replayed", replayed),
    ]
}

/// What was taken from them and given to them.
pub(super) fn traffic(page: &mut Page, traffic: &Traffic) {
    let Traffic { local, peer, registry, uploaded, .. } = traffic;
    let sources = [("local", local), ("peer", peer), ("registry", registry)];
    page.counters(names::PEER_PIECES, "source", sources.map(|(name, sum)| (name, sum.pieces)));
    page.counters(names::PEER_PIECE_BYTES, "source", sources.map(|(name, sum)| (name, sum.bytes)));
    page.counter(names::PEER_UPLOADED, uploaded.pieces);
    page.counter(names::PEER_UPLOADED_BYTES, uploaded.bytes);
    page.gauge(names::PEER_UPLOADS, traffic.uploading);
    let Traffic { redirected, busy, refused, .. } = *traffic;
    let reasons = [("redirected", redirected), ("busy", busy), ("refused", refused)];
    page.counters(names::PEER_TURNED_AWAY, "reason", reasons);
    page.counter(names::PEER_HEDGED, traffic.hedged);
    page.counter(names::PEER_LIES, traffic.lies);
    let left_alone = |why| traffic.shunned.iter().filter(|exile| exile.why == why).count() as u64;
    let reasons = [
        ("unreachable", left_alone(Why::Unreachable)),
        ("foreign", left_alone(Why::Foreign)),
        ("banned", left_alone(Why::Banned)),
    ];
    page.gauges(names::PEER_SHUNNED, "reason", reasons);
    let kept = [("own", traffic.own_bytes), ("held", traffic.held_bytes)];
    page.gauges(names::PEER_KEPT, "kind", kept);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::counters::{Amount, Exile};
    use crate::peer::member::MemberId;

    #[test]
    fn what_went_between_nodes_is_told_by_source_and_reason() {
        let member = MemberId::from_bytes([1; 16]);
        let exile = |why| Exile { member, why, reason: String::new(), seconds: 1 };
        let amount = |pieces, bytes| Amount { pieces, bytes };
        let sum = Traffic {
            local: amount(1, 10),
            peer: amount(2, 20),
            registry: amount(3, 30),
            uploaded: amount(4, 40),
            lies: 5,
            shunned: vec![exile(Why::Banned), exile(Why::Banned), exile(Why::Unreachable)],
            ..Traffic::default()
        };
        let mut page = Page::default();
        traffic(&mut page, &sum);
        members(&mut page, None);
        let text = page.render();
        for line in [
            "undermount_peer_pieces_total{source=\"local\"} 1",
            "undermount_peer_piece_bytes_total{source=\"peer\"} 20",
            "undermount_peer_piece_bytes_total{source=\"registry\"} 30",
            "undermount_peer_uploaded_bytes_total 40",
            "undermount_peer_lies_total 5",
            "undermount_peer_shunned{reason=\"banned\"} 2",
            "undermount_peer_shunned{reason=\"foreign\"} 0",
            "undermount_peer_members 0",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }
}
