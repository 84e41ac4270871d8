//! A network that loses, cuts and records, as a [`Wire`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::peer::member::MemberId;
use crate::peer::membership::{Bind, Wire, udp};

/// What happens to datagrams and requests.
#[derive(Clone)]
pub struct Network(Arc<Mutex<Faults>>);

struct Faults {
    loss: f64,
    lost: usize,
    unplugged: bool,
    /// The members on one side of a cut.
    side: HashSet<MemberId>,
    /// The last datagram to each address, if that is wanted.
    record: Option<HashMap<SocketAddr, Vec<u8>>>,
    dice: SmallRng,
}

impl Network {
    /// One without faults.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Faults {
            loss: 0.0,
            lost: 0,
            unplugged: false,
            side: HashSet::new(),
            record: None,
            dice: SmallRng::seed_from_u64(7),
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Faults) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    pub fn lose(&self, share: f64) {
        self.with(|faults| faults.loss = share);
    }

    pub fn lost(&self) -> usize {
        self.with(|faults| faults.lost)
    }

    /// Cuts these members off from all others.
    pub fn cut(&self, side: &[MemberId]) {
        self.with(|faults| faults.side = side.iter().copied().collect());
    }

    pub fn heal(&self) {
        self.with(|faults| faults.side.clear());
    }

    pub fn unplug(&self) {
        self.with(|faults| faults.unplugged = true);
    }

    pub fn plug_in(&self) {
        self.with(|faults| faults.unplugged = false);
    }

    pub fn record(&self) {
        self.with(|faults| faults.record = Some(HashMap::new()));
    }

    pub fn recorded(&self, to: SocketAddr) -> Option<Vec<u8>> {
        self.with(|faults| faults.record.as_ref()?.get(&to).cloned())
    }

    /// Whether one member cannot reach the other.
    pub fn separates(&self, one: MemberId, other: MemberId) -> bool {
        self.with(|faults| faults.side.contains(&one) != faults.side.contains(&other))
    }

    /// UDP through this network.
    pub fn bind(&self) -> Bind {
        let network = self.clone();
        Arc::new(move |addresses| {
            if network.with(|faults| faults.unplugged) {
                return Err(io::Error::other("unplugged"));
            }
            let (inner, bound) = udp()(addresses)?;
            Ok((Arc::new(Faulty { inner, network: network.clone() }), bound))
        })
    }
}

struct Faulty {
    inner: Arc<dyn Wire>,
    network: Network,
}

impl Wire for Faulty {
    fn send(&self, to: &[SocketAddr], datagram: &[u8]) {
        let member = |at: usize| MemberId::from_bytes(datagram[at..at + 16].try_into().unwrap());
        let cut = self.network.separates(member(12), member(28));
        let lost = self.network.with(|faults| {
            if let Some(record) = &mut faults.record {
                record.insert(to[0], datagram.to_owned());
            }
            let lost = cut || faults.dice.random_bool(faults.loss);
            faults.lost += usize::from(lost);
            lost
        });
        if !lost {
            self.inner.send(to, datagram);
        }
    }

    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>> {
        self.inner.receive(buffer)
    }
}
