//! Memberships in one process, over real UDP and HTTP on loopback, with faults at the wire.

mod cluster;
mod faults;

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::peer::datagram::MAX_DATAGRAM;
use crate::peer::keys::testing::keys;
use crate::peer::keys::{KeyFile, SecretKey};
use cluster::{Cluster, TestNode, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_know_only_the_seed_find_each_other() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(5).await;
    cluster.sees_all(5).await;
    for node in &cluster.nodes {
        let members = node.membership.roster().members();
        let own = members.get(&node.membership.roster().own).unwrap();
        assert_eq!(own.addresses, node.membership.bound().await);
        assert_eq!(own.weight, Weight::FULL);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_find_each_other_through_one_static_address_and_by_ipv6() {
    let mut cluster = Cluster::alone();
    cluster.listen = "[::1]:0".parse().unwrap();
    cluster.add(1).await;
    cluster.members = cluster.nodes[0].membership.bound().await;
    cluster.add(3).await;
    cluster.sees_all(4).await;
    assert!(cluster.members[0].is_ipv6());
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_nodes_that_come_at_once_all_know_all_though_datagrams_are_lost() {
    let mut cluster = Cluster::with_seed().await;
    cluster.network.lose(0.2);
    cluster.add(30).await;
    cluster.sees_all(30).await;
    assert!(cluster.network.lost() > 100, "the faults were there");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_before_the_seed_is_there_tries_again() {
    let seed = cluster::reserve_port();
    let mut cluster = Cluster::alone();
    cluster.seeds = vec![format!("http://{seed}/undermount")];
    cluster.add(3).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.nodes.iter().all(|node| node.count() == 1));
    cluster.serve_seed_at(seed).await;
    cluster.sees_all(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_cut_in_two_is_one_again() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(4).await;
    cluster.sees_all(4).await;
    cluster.network.cut(&cluster.nodes[..2].iter().map(TestNode::id).collect::<Vec<_>>());
    eventually("each side sees itself alone", || cluster.nodes.iter().all(|it| it.count() == 2))
        .await;
    cluster.network.heal();
    cluster.sees_all(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_and_started_again_is_the_same_member_and_never_missed() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(3).await;
    cluster.sees_all(3).await;
    let (id, epoch) = (cluster.nodes[0].id(), cluster.nodes[0].epoch());
    let watched = cluster.nodes[1].watch_lowest_count();
    cluster.restart(0).await;
    assert_eq!(cluster.nodes[0].id(), id);
    let later = || {
        let members = cluster.nodes[1].membership.roster().members();
        members.get(&id).is_some_and(|member| member.epoch > epoch)
    };
    eventually("the others know its new life", later).await;
    cluster.sees_all(3).await;
    assert_eq!(watched.lowest(), 3, "nobody thought that it was gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_seed_is_gone_finds_the_members_it_knew() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(3).await;
    cluster.sees_all(3).await;
    for node in &cluster.nodes {
        node.has_written_members_down(2).await;
    }
    cluster.stop_seed();
    cluster.restart(0).await;
    cluster.sees_all(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_good_bye_is_gone_at_once() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(4).await;
    cluster.sees_all(4).await;
    let gone = cluster.nodes.remove(0);
    gone.membership.leave().await;
    cluster.sees_all(3).await;
    // A newcomer does not hear of it from the seed either.
    cluster.add(1).await;
    eventually("the seed answered", || cluster.nodes[3].count() > 1).await;
    assert!(cluster.nodes[3].membership.roster().members().get(&gone.id()).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drains_owns_nothing_then_leaves_and_can_come_back() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(3).await;
    cluster.sees_all(3).await;
    let id = cluster.nodes[0].id();
    cluster.nodes[0].membership.drain(true);
    let weight = || {
        let members = cluster.nodes[1].membership.roster().members();
        members.get(&id).map(|member| member.weight)
    };
    eventually("it owns nothing", || weight() == Some(Weight::NONE)).await;
    eventually("it is gone", || weight().is_none()).await;
    assert!(cluster.nodes[0].membership.status().left);
    cluster.nodes[0].membership.drain(false);
    eventually("it is back", || weight() == Some(Weight::FULL)).await;
    cluster.sees_all(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_drained_before_it_started_stays_out() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(2).await;
    cluster.drained = true;
    cluster.add(1).await;
    cluster.sees(2, &[0, 1]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.nodes.iter().map(TestNode::count).collect::<Vec<_>>(), [2, 2, 0]);
    cluster.nodes[2].membership.drain(false);
    cluster.sees_all(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_has_less_weight_everywhere() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(3).await;
    cluster.sees_all(3).await;
    let id = cluster.nodes[0].id();
    cluster.nodes[0].membership.set_weight(Weight(40));
    eventually("all know", || {
        cluster.nodes.iter().all(|node| {
            let members = node.membership.roster().members();
            members.len() == 3 && members.get(&id).is_some_and(|it| it.weight == Weight(40))
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_another_version_is_a_member_and_owns_nothing() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(1).await;
    cluster.protocol = (2, 3);
    cluster.add(1).await;
    cluster.sees_all(2).await;
    for (viewer, viewed) in [(0, 1), (1, 0)] {
        let members = cluster.nodes[viewer].membership.roster().members();
        assert_eq!(members.get(&cluster.nodes[viewed].id()).unwrap().weight, Weight::NONE);
        assert_eq!(members.get(&cluster.nodes[viewer].id()).unwrap().weight, Weight::FULL);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_key_is_rotated_without_a_gap() {
    let mut cluster = Cluster::with_seed().await;
    let mut file = KeyFile::single(SecretKey::from_bytes([1; 32]));
    cluster.add(4).await;
    cluster.sees_all(4).await;
    let watched = cluster.nodes[0].watch_lowest_count();
    for _ in 0..3 {
        file.rotate(SecretKey::from_bytes([2; 32]));
        for node in &cluster.nodes {
            node.keys.replace(&file);
            // Node after node, as a rollout does it: datagrams cross in both directions.
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
    assert_eq!(watched.lowest(), 4);
    for node in &cluster.nodes {
        let status = node.membership.status();
        assert_eq!((status.datagrams.key, status.datagrams.forged), (0, 0));
        assert_eq!(status.keys, [keys(2).ids()[0].to_string()]);
    }
    cluster.seed_keys.replace(&file);
    cluster.keys_of_next = keys(2);
    cluster.add(1).await;
    cluster.sees_all(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_outside_the_cluster_learns_nothing_and_changes_nothing() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(2).await;
    cluster.sees_all(2).await;
    let address = cluster.nodes[0].membership.bound().await[0];
    for (method, path) in [("GET", MEMBERS), ("POST", JOIN)] {
        let url = format!("http://{address}{path}");
        let method = method.parse().unwrap();
        let response = reqwest::Client::new().request(method, url).send().await.unwrap();
        assert_eq!(response.status(), http::StatusCode::UNAUTHORIZED, "{path}");
    }
    cluster.keys_of_next = keys(9);
    cluster.members = vec![address];
    cluster.add(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let counts: Vec<usize> = cluster.nodes.iter().map(TestNode::count).collect();
    assert_eq!(counts, [2, 2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_replayed_and_oversized_datagrams_are_dropped_and_counted() {
    let mut cluster = Cluster::with_seed().await;
    cluster.network.record();
    cluster.add(2).await;
    cluster.sees_all(2).await;
    let victim = &cluster.nodes[0];
    let address = victim.membership.bound().await[0];
    eventually("a datagram was sent to it", || cluster.network.recorded(address).is_some()).await;
    let datagram = cluster.network.recorded(address).unwrap();
    let mut forged = datagram.clone();
    *forged.last_mut().unwrap() ^= 1;
    // Not one that is known already: its counter is one that never comes.
    forged[52..60].copy_from_slice(&(u64::MAX - 1).to_be_bytes());
    let mut version = datagram.clone();
    version[3] = 9;
    let before = victim.membership.status().datagrams;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for bytes in [&datagram, &datagram, &forged, &version, &vec![0; MAX_DATAGRAM + 300]] {
        socket.send_to(bytes, address).unwrap();
    }
    let after = || victim.membership.status().datagrams;
    eventually("all are counted", || {
        let (after, before) = (after(), before);
        after.replayed >= before.replayed + 2
            && after.forged == before.forged + 1
            && after.version == before.version + 1
            && after.oversized == before.oversized + 1
    })
    .await;
    assert_eq!(victim.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_its_network_starts_and_joins_when_it_is_there() {
    let mut cluster = Cluster::with_seed().await;
    cluster.add(2).await;
    cluster.network.unplug();
    cluster.add_without_waiting();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let late = cluster.nodes.last().unwrap();
    assert!(late.membership.roster().members().is_empty());
    assert!(late.membership.status().listen.is_empty());
    cluster.network.plug_in();
    cluster.serve_last().await;
    cluster.sees_all(3).await;
}

#[test]
fn what_peers_tell_of_themselves_fits_a_datagram() {
    // Two identities, the message and one update, each as large as it may be.
    let address: SocketAddr = "[fd00::1]:65535".parse().unwrap();
    let identity = Identity {
        addresses: vec![address; identity::MAX_ADDRESSES],
        revision: u32::MAX,
        epoch: u64::MAX,
        protocol: (u16::MAX, u16::MAX),
        ..identity::testing::identity(1)
    };
    let length = postcard::to_allocvec(&identity).unwrap().len();
    assert!(4 * (length + 10) < crate::peer::datagram::MAX_PAYLOAD, "{length}");
}
