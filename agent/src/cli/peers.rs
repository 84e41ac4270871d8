//! `undermount peers`: the other nodes, as the agent sees them.

use std::io::{self, Write};

use clap::Args;
use undermount::control::PeersStatus;
use undermount::peer::counters::{Exile, Traffic};
use undermount::peer::member::{Member, Weight};

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs};

/// Show the nodes that this one shares with
///
/// Lists the members that the agent believes to be alive: name, address, share of the pieces that
/// it owns in hundredths, versions of the protocol, when its agent started. Then where the pieces
/// came from that were wanted here, what was given to others, and whom this node leaves alone for
/// a while, and why. On stderr it says what is odd, such as datagrams that nobody of the cluster
/// has sent.
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl PeersArgs {
    /// Asks the agent, and prints what it says.
    pub async fn run(self) -> CliResult {
        let Some(control) = owner::running(&self.cache).await? else {
            return Err("no agent owns this cache".into());
        };
        let status = control.peers().await?;
        let mut stdout = io::stdout();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string_pretty(&status)?)?;
        } else {
            members(&status, &mut stdout)?;
            status.traffic.iter().try_for_each(|traffic| shared(traffic, &mut stdout))?;
            remarks(&status, &mut io::stderr())?;
        }
        Ok(Exit::Success)
    }
}

/// One line for each member, oneself marked by a star.
fn members(status: &PeersStatus, out: &mut impl Write) -> io::Result<()> {
    let membership = &status.membership;
    for member in &membership.members {
        let Member { id, addresses, epoch, protocol, weight } = member;
        let mark = if *id == membership.own { '*' } else { ' ' };
        let places: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let (oldest, newest) = protocol.clone().into_inner();
        let Weight(weight) = weight;
        writeln!(
            out,
            "{mark} {id}  {:<21}  weight {weight:>3}  protocol {oldest}-{newest}  epoch {epoch}",
            places.join(","),
        )?;
    }
    Ok(())
}

/// Where what was wanted here came from, and what was given to others.
fn shared(traffic: &Traffic, out: &mut impl Write) -> io::Result<()> {
    let Traffic { local, peer, registry, uploaded, .. } = traffic;
    let wanted = (local.pieces + peer.pieces + registry.pieces).max(1);
    for (name, amount) in [("own pieces", local), ("peers", peer), ("registry", registry)] {
        let share = amount.pieces as f64 * 100.0 / wanted as f64;
        writeln!(
            out,
            "from {name:<10}  {:>10} pieces  {:>12}  {share:>5.1} %",
            amount.pieces,
            bytes(amount.bytes),
        )?;
    }
    writeln!(
        out,
        "to peers         {:>10} pieces  {:>12}",
        uploaded.pieces,
        bytes(uploaded.bytes)
    )?;
    writeln!(
        out,
        "kept for others  {} of its own, {} of others'",
        bytes(traffic.own_bytes),
        bytes(traffic.held_bytes)
    )?;
    for Exile { member, reason, seconds, .. } in &traffic.shunned {
        writeln!(out, "left alone: {member}  {reason}  for another {seconds} s")?;
    }
    Ok(())
}

/// A number of bytes in MiB, to two places.
fn bytes(count: u64) -> String {
    format!("{:.2} MiB", count as f64 / 1_048_576.0)
}

/// What an operator should know beside that.
fn remarks(status: &PeersStatus, out: &mut impl Write) -> io::Result<()> {
    let membership = &status.membership;
    if membership.listen.is_empty() {
        writeln!(out, "the peer network of this node is not there yet: see the agent's log")?;
    }
    if membership.left {
        writeln!(out, "this node has left the cluster: `undermount drain --undo` brings it back")?;
    }
    let datagrams = membership.datagrams;
    for (count, words) in [
        (datagrams.key, "sealed with a key that this node does not have"),
        (datagrams.forged, "forged, or damaged on their way"),
        (datagrams.version, "of another version"),
        (datagrams.oversized, "too long"),
        (datagrams.malformed, "no datagrams of ours"),
        (datagrams.replayed, "repeated"),
        (datagrams.misdirected, "for another node"),
    ] {
        if count > 0 {
            writeln!(out, "{count} datagrams dropped: {words}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use undermount::peer::datagram::Received;
    use undermount::peer::member::MemberId;
    use undermount::peer::membership::MembershipStatus;

    use super::*;

    #[test]
    fn members_and_what_is_odd_are_told_apart() {
        let own = MemberId::from_bytes([0xab; 16]);
        let member = Member {
            id: own,
            addresses: vec!["172.16.2.11:8788".parse().unwrap()],
            epoch: 1_700_000_000_000,
            protocol: 1..=2,
            weight: Weight(40),
        };
        let datagrams = Received { taken: 9, forged: 3, ..Received::default() };
        let membership = MembershipStatus {
            own,
            listen: member.addresses.clone(),
            left: false,
            keys: Vec::new(),
            members: vec![member],
            datagrams,
        };
        let status = PeersStatus { membership, traffic: None };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        members(&status, &mut out).unwrap();
        remarks(&status, &mut err).unwrap();
        let (out, err) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
        assert!(out.starts_with("* abab"), "{out}");
        assert!(out.contains("172.16.2.11:8788") && out.contains("weight  40"), "{out}");
        assert!(out.contains("protocol 1-2"), "{out}");
        assert_eq!(err, "3 datagrams dropped: forged, or damaged on their way\n");
    }
}
