//! Connections: accepted, given a deadline for each request's head, and ended at shutdown.
//! `axum::serve` has neither deadlines nor an owner for its connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The head of a request must arrive within this time; an idle connection ends after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// A client must have agreed on a key within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// A client that takes nothing of what is sent to it for so long is cut off.
const SEND_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause after a failed accept: mostly the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it is on this host: it has a loopback address, or the very one that it asks.
    pub is_local: bool,
}

impl Peer {
    /// Who asks from `address` what listens on `asked`.
    pub fn new(address: SocketAddr, asked: Option<SocketAddr>) -> Self {
        let from = address.ip().to_canonical();
        let is_own = asked.is_some_and(|asked| asked.ip().to_canonical() == from);
        Self { address, is_local: from.is_loopback() || is_own }
    }
}

/// Serves `app` on `listener`, encrypted if `tls` is given, until `shutdown` is cancelled, then
/// gives the requests in progress `grace` to end. Returns when all connections have ended or were cut.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: Router,
    shutdown: &CancellationToken,
    grace: Duration,
) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    while let Some((stream, address)) = accept(&listener, shutdown).await {
        let peer = Peer::new(address, stream.local_addr().ok());
        let (tls, app) = (tls.clone(), app.clone());
        let (shutdown, cut) = (shutdown.clone(), cut.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection(stream, peer, tls, app, shutdown) => {}
                () = cut.cancelled() => tracing::warn!(peer = %address, "connection cut at shutdown"),
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

/// The next connection; `None` at shutdown.
async fn accept(
    listener: &TcpListener,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted: io::Result<_> = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return None,
        };
        match accepted {
            Ok(connection) => return Some(connection),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Options without which a connection works as well, only slower or for longer.
fn prepare(stream: &TcpStream) {
    // Answers are written whole; waiting for more to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let timeout = u32::try_from(SEND_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &timeout);
}

/// Serves one connection, encrypted or not.
async fn connection(
    stream: TcpStream,
    peer: Peer,
    tls: Option<TlsAcceptor>,
    app: Router,
    shutdown: CancellationToken,
) {
    prepare(&stream);
    let Some(tls) = tls else { return answer(stream, peer, app, shutdown).await };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => answer(stream, peer, app, shutdown).await,
        Ok(Err(error)) => tracing::debug!(peer = %peer.address, %error, "no TLS handshake"),
        Err(_) => tracing::debug!(peer = %peer.address, "TLS handshake timed out"),
    }
}

/// Answers the requests of a connection; at shutdown, only the one in progress.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    app: Router,
    shutdown: CancellationToken,
) {
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let app = app.clone();
        async move { app.call(request).await }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %peer.address, error = &*error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_the_address_that_he_has_is_on_this_host() {
        for (address, asked, is_local) in [
            ("127.0.0.1:1", Some("127.0.0.1:8787"), true),
            ("127.0.0.9:1", None, true),
            ("[::1]:1", Some("[::1]:8787"), true),
            ("[::ffff:127.0.0.9]:1", None, true),
            ("192.0.2.1:1", Some("192.0.2.1:8787"), true),
            ("[::ffff:192.0.2.1]:1", Some("192.0.2.1:8787"), true),
            ("[2001:db8::1]:1", Some("[2001:db8::1]:8787"), true),
            ("192.0.2.2:1", Some("192.0.2.1:8787"), false),
            ("[2001:db8::2]:1", Some("[2001:db8::1]:8787"), false),
            ("192.0.2.1:1", None, false),
        ] {
            let parsed = |text: &str| text.parse::<SocketAddr>().unwrap();
            let peer = Peer::new(parsed(address), asked.map(parsed));
            assert_eq!(peer.is_local, is_local, "{address} asks {asked:?}");
        }
    }
}
