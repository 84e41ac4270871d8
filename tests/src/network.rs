//! A network of the test's own: hosts that are network namespaces, each on a link of a known
//! rate to one switch.
//!
//! ```text
//! host "registry"  eth0 ==( 50 Mbit/s )== port1 \
//! host "node-1"    eth0 ==(  1 Gbit/s )== port2  | a bridge in a namespace of its own
//! host "node-2"    eth0 ==(  1 Gbit/s )== port3 /
//! ```
//!
//! Only the network is a host's own: processes there see the files and mounts of everybody, so
//! what they mount can be read from here. Nothing is added to the network of the machine itself,
//! and several tests can use the same addresses side by side.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sched::{CloneFlags, setns};

use crate::process::{SOON, program, run};
use crate::requirement::Need;

/// What [`Network`] needs from the machine.
pub const NEEDS: &[Need] =
    &[Need::Root, Need::Program("ip"), Need::Program("tc"), Need::Program("nsenter")];

/// What all namespaces made here are called first; the id of the test's process follows.
const PREFIX: &str = "undermount-";

/// A hardware address that nobody has: what is sent there is lost.
const NOBODY: &str = "02:00:00:00:de:ad";

/// Held while a namespace is made that looks like one of a process that is gone, lest somebody take
/// it away half made.
static LEFTOVERS: Mutex<()> = Mutex::new(());

/// A switch that hosts are connected to. It and its hosts are gone when they are dropped, also
/// after a panic.
pub struct Network {
    switch: Namespace,
    ports: AtomicU8,
}

/// A machine on a [`Network`].
pub struct Host {
    namespace: Namespace,
    number: u8,
}

/// A network namespace with a name (`ip-netns(8)`).
struct Namespace(String);

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// A switch without hosts.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let switch = Namespace::new(format!("{PREFIX}{}-{count}", std::process::id()));
        switch.ip(&["link", "add", "bridge", "type", "bridge", "stp_state", "0"]);
        switch.ip(&["link", "set", "bridge", "up"]);
        Self { switch, ports: AtomicU8::new(0) }
    }

    /// A new host whose link carries so many Mbit/s in either direction.
    pub fn host(&self, mbit: u32) -> Host {
        let number = self.ports.fetch_add(1, Ordering::Relaxed) + 1;
        let namespace = Namespace::new(format!("{}-{number}", self.switch.0));
        let host = Host { namespace, number };
        let port = host.port();
        let words = ["link", "add", "eth0", "netns", &host.namespace.0, "type", "veth"];
        self.switch.ip(&[&words[..], &["peer", "name", &port]].concat());
        self.switch.ip(&["link", "set", &port, "master", "bridge", "up"]);
        host.namespace.ip(&["link", "set", "lo", "up"]);
        host.namespace.ip(&["link", "set", "eth0", "up"]);
        let (v4, v6) = (format!("{}/24", host.address()), format!("{}/64", host.address_v6()));
        host.namespace.ip(&["addr", "add", &v4, "dev", "eth0"]);
        host.namespace.ip(&["addr", "add", &v6, "dev", "eth0", "nodad"]);
        host.namespace.shape("eth0", mbit);
        self.switch.shape(&port, mbit);
        host
    }

    /// Pulls the host's plug; nobody is told.
    pub fn unplug(&self, host: &Host) {
        self.switch.ip(&["link", "set", &host.port(), "down"]);
    }
}

impl Host {
    /// Its IPv4 address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its IPv6 address.
    pub fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into())
    }

    /// A program that will run there. Nothing but the network is another one.
    pub fn command(&self, program_path: &Path) -> Command {
        let mut command = program("nsenter");
        command.arg(format!("--net={}", self.namespace.path().display())).arg(program_path);
        command
    }

    /// Does `work` there: every socket that it makes belongs to the host.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.namespace.path()).unwrap();
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Bytes that it has sent over its link so far, with all headers.
    pub fn sent(&self) -> u64 {
        // The field after the eight of what was received; see proc_pid_net(5).
        self.counter(8)
    }

    /// Bytes that it has received.
    pub fn received(&self) -> u64 {
        self.counter(0)
    }

    /// From now on what it sends to `other` is lost, and nobody is told.
    pub fn lose(&self, other: &Host) {
        for address in [IpAddr::from(other.address()), other.address_v6().into()] {
            let address = address.to_string();
            let words = ["neigh", "replace", &address, "lladdr", NOBODY, "nud", "permanent"];
            self.namespace.ip(&[&words[..], &["dev", "eth0"]].concat());
        }
    }

    /// What it sends to `other` arrives again.
    pub fn find(&self, other: &Host) {
        for address in [IpAddr::from(other.address()), other.address_v6().into()] {
            self.namespace.ip(&["neigh", "del", &address.to_string(), "dev", "eth0"]);
        }
    }

    fn counter(&self, field: usize) -> u64 {
        let table = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let number = line.and_then(|line| line.split_whitespace().nth(field)?.parse().ok());
        number.unwrap_or_else(|| panic!("no counters of eth0 in {table}"))
    }

    fn port(&self) -> String {
        format!("port{}", self.number)
    }
}

/// Splits hosts into two sides that do not hear each other, as a broken trunk would.
pub fn part(one: &[&Host], other: &[&Host]) {
    on_both_sides(one, other, Host::lose);
}

/// Brings such sides together again.
pub fn heal(one: &[&Host], other: &[&Host]) {
    on_both_sides(one, other, Host::find);
}

fn on_both_sides(one: &[&Host], other: &[&Host], change: fn(&Host, &Host)) {
    for left in one {
        for right in other {
            change(left, right);
            change(right, left);
        }
    }
}

impl Namespace {
    fn new(name: String) -> Self {
        run(program("ip").args(["netns", "add", &name]), SOON).success();
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    #[track_caller]
    fn ip(&self, words: &[&str]) {
        run(program("ip").args(["-n", &self.0]).args(words), SOON).success();
    }

    /// Limits what goes out at `interface`. A queue of 50 ms is what a switch has.
    fn shape(&self, interface: &str, mbit: u32) {
        let (rate, burst) = (format!("{mbit}mbit"), format!("{}kb", (mbit / 2).max(64)));
        let words = ["qdisc", "add", "dev", interface, "root", "tbf", "rate", &rate];
        let more = ["burst", &burst, "latency", "50ms"];
        run(program("tc").args(["-n", &self.0]).args(words).args(more), SOON).success();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(name: &str) {
    // A failed test must not fail again here.
    let _ = program("ip").args(["netns", "del", name]).status();
}

/// Removes the namespaces of test processes that were killed.
fn remove_leftovers() {
    let _alone = LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::process::eventually;
    use crate::requirement::lacking;

    /// Sends so many bytes from one host to the other; how long that took.
    fn transfer(from: &Host, to: &Host, bytes: usize) -> Duration {
        let listener = to.enter(|| TcpListener::bind((to.address(), 0)).unwrap());
        let (address, begin) = (listener.local_addr().unwrap(), Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = from.enter(|| TcpStream::connect(address).unwrap());
                stream.write_all(&vec![7; bytes]).unwrap();
            });
            let mut stream = listener.accept().unwrap().0;
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), bytes);
            begin.elapsed()
        })
    }

    #[test]
    fn links_have_their_rates_and_count_their_bytes() {
        if lacking(NEEDS) {
            return;
        }
        let network = Network::new();
        let (slow, fast, faster) = (network.host(50), network.host(1000), network.host(1000));
        let before = slow.sent();
        let limited = transfer(&slow, &fast, 2_500_000);
        let sent = slow.sent() - before;
        // 2.5 MB take 400 ms at 50 Mbit/s, less what the bucket lets through at once.
        assert!(limited > Duration::from_millis(350), "{limited:?}");
        // What is lost at the bucket is sent again.
        assert!((2_500_000..4_500_000).contains(&sent), "{sent}");
        eventually("a fast link is faster", SOON, || {
            transfer(&fast, &faster, 2_500_000) < Duration::from_millis(350)
        });
    }

    #[test]
    fn sides_that_are_parted_lose_each_other_until_they_are_healed() {
        if lacking(NEEDS) {
            return;
        }
        let network = Network::new();
        let hosts = [network.host(1000), network.host(1000), network.host(1000)];
        let [one, two, three] = &hosts;
        let listener = three.enter(|| TcpListener::bind("[::]:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        let reaches = |from: &Host, address: IpAddr| {
            let address = SocketAddr::new(address, port);
            let patience = Duration::from_millis(300);
            from.enter(|| TcpStream::connect_timeout(&address, patience).is_ok())
        };
        let addresses = [IpAddr::from(three.address()), three.address_v6().into()];
        part(&[one], &[two, three]);
        for address in addresses {
            eventually("the other side is reached", SOON, || reaches(two, address));
            assert!(!reaches(one, address), "{address}");
        }
        heal(&[one], &[two, three]);
        for address in addresses {
            eventually("the healed side is reached", SOON, || reaches(one, address));
        }
        network.unplug(three);
        assert!(!reaches(two, addresses[0]));
    }

    #[test]
    fn a_network_is_gone_after_a_panic_and_so_are_those_of_dead_processes() {
        if lacking(NEEDS) {
            return;
        }
        // No process has this id: it is above the kernel's limit.
        remove_leftovers();
        let alone = LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner);
        let left = Namespace::new(format!("{PREFIX}4999999-0"));
        drop(alone);
        let path = left.path();
        std::mem::forget(left);
        let names = std::thread::spawn(|| {
            let network = Network::new();
            let host = network.host(1000);
            let names = [network.switch.path(), host.namespace.path()];
            assert!(names.iter().all(|name| name.exists()));
            std::panic::resume_unwind(Box::new(names));
        });
        let names = names.join().unwrap_err().downcast::<[PathBuf; 2]>().unwrap();
        assert!(names.iter().chain([&path]).all(|name| !name.exists()), "{names:?} {path:?}");
    }
}
