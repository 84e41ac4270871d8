//! Datagrams to a member of a cluster, as late as the link makes them.
//!
//! They take nothing of its rate, and do not wait for what else is on its way: gossip is a
//! kilobyte now and then, and a real queue is not as long as what the proxy holds of a connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

/// Datagrams that are on their way at a time; more of them are lost, as datagrams may be.
const IN_FLIGHT: usize = 1024;
/// The longest datagram.
const LONGEST: usize = 64 * 1024;

/// Carries what comes in at `socket` to `far`, where it arrives after `delay`, for as long as this
/// is polled.
pub async fn carry(socket: UdpSocket, far: SocketAddr, delay: Duration) {
    let (sender, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let socket = &socket;
    let receiving = async move {
        let mut datagram = vec![0; LONGEST];
        while let Ok((length, _)) = socket.recv_from(&mut datagram).await {
            let _ = sender.try_send((Instant::now() + delay, datagram[..length].to_vec()));
        }
    };
    let sending = async move {
        while let Some((arrival, datagram)) = on_the_way.recv().await {
            tokio::time::sleep_until(arrival.into()).await;
            if let Err(error) = socket.send_to(&datagram, far).await {
                tracing::debug!(%error, "a datagram over the link was lost");
            }
        }
    };
    tokio::join!(receiving, sending);
}
