//! The world outside the test, as a proxy: it knows the private addresses of the cases, where
//! registries without TLS answer, and nobody else. So no case needs a network, and none finds out
//! what is in the network of the machine.

use std::process::Command;

use crate::http::{Response, Server};

/// Addresses of the cases that are not of this machine.
const PRIVATE: [&str; 2] = ["10.", "192.168."];

/// Starts the proxy.
pub fn start() -> Server {
    Server::start(|request| {
        let host = request.path.strip_prefix("http://").unwrap_or(&request.path);
        // What follows a CONNECT is a TLS handshake, which the server answers in plain words.
        match PRIVATE.iter().any(|begin| host.starts_with(begin)) {
            true => Response::new(200, ""),
            false => Response::new(502, ""),
        }
    })
}

/// Lets `command` reach other hosts through `proxy` only.
pub fn beyond(command: &mut Command, proxy: &Server) {
    let url = format!("http://{}", proxy.address());
    for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env(variable, &url);
    }
    for variable in ["no_proxy", "NO_PROXY"] {
        command.env(variable, "127.0.0.1,localhost");
    }
}
