//! Servers under load beside nginx: a client that costs little, and what a server costs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use undermount_tests::port;
use undermount_tests::process::{Running, SOON, program};

/// Reads and forgets, over one connection, with as little work as can be.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects to `address`, within the deadline of tests.
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream, buffer: vec![0; 1 << 20] }
    }

    /// Asks for `path` with these header lines.
    pub fn ask(&mut self, path: &str, headers: &str) {
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: bench\r\n{headers}\r\n").unwrap();
    }

    /// The status of the answer to what was asked; `None` where the server has hung up.
    pub fn status(&mut self) -> Option<u16> {
        let mut line = [0; 12];
        self.stream.read_exact(&mut line).ok()?;
        std::str::from_utf8(&line[9..]).ok()?.parse().ok()
    }

    /// Asks for `path` with these header lines, and reads the `length` bytes of the answer.
    pub fn read(&mut self, path: &str, headers: &str, length: usize) {
        self.ask(path, headers);
        let mut have = 0;
        let head = loop {
            let count = self.stream.read(&mut self.buffer[have..]).unwrap();
            assert!(count > 0, "the server closed the connection");
            have += count;
            let end = self.buffer[..have].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
        };
        assert!(self.buffer.starts_with(b"HTTP/1.1 20"), "an error");
        let mut left = length - (have - head);
        while left > 0 {
            let most = left.min(self.buffer.len());
            let count = self.stream.read(&mut self.buffer[..most]).unwrap();
            assert!(count > 0, "the answer ended early");
            left -= count;
        }
    }
}

/// Debian's nginx with a configuration of its own.
pub struct Nginx {
    /// The process.
    pub running: Running,
    /// Where it listens.
    pub address: String,
    _files: tempfile::TempDir,
}

impl Nginx {
    /// Serves the files below `root`.
    pub fn serve(root: &Path) -> Self {
        let files = tempfile::tempdir().unwrap();
        let address = port::unused().to_string();
        let (root, here) = (root.display(), files.path().display());
        let config = format!(
            "daemon off;\nuser root;\nworker_processes auto;\npid {here}/pid;\n\
             error_log stderr;\nevents {{}}\nhttp {{\n  access_log off;\n  sendfile on;\n  \
             tcp_nopush on;\n  keepalive_requests 100000;\n  \
             client_body_temp_path {here}/body;\n  proxy_temp_path {here}/proxy;\n  \
             fastcgi_temp_path {here}/fastcgi;\n  uwsgi_temp_path {here}/uwsgi;\n  \
             scgi_temp_path {here}/scgi;\n  \
             server {{ listen {address}; root {root}; }}\n}}\n"
        );
        let path = files.path().join("nginx.conf");
        fs::write(&path, config).unwrap();
        let running =
            Running::start(program("nginx").arg("-c").arg(&path).arg("-p").arg(files.path()));
        let end = Instant::now() + SOON;
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < end, "nginx does not listen: {}", running.stderr());
            thread::sleep(Duration::from_millis(10));
        }
        Self { running, address, _files: files }
    }
}

/// Processor time of a process and its children.
pub fn processor_time(process: u32) -> Duration {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let children = children.unwrap_or_default();
    let all = children.split_whitespace().filter_map(|id| id.parse().ok()).chain([process]);
    all.map(own_processor_time).sum()
}

fn own_processor_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    // Linux tells them in hundredths of a second.
    Duration::from_millis(10 * ticks)
}
