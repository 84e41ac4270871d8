//! How many blobs a client may read at a time. A node that asks for more than its share waits,
//! told so by 429, and leaves room for the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The reads in progress, by client.
#[derive(Debug)]
pub struct ReadLimit {
    /// Reads of one client at a time; `None` for any number.
    most: Option<usize>,
    reads: Mutex<HashMap<IpAddr, usize>>,
}

/// A read in progress; it ends when this is dropped.
#[derive(Debug)]
pub struct Read {
    limit: Arc<ReadLimit>,
    client: IpAddr,
}

impl ReadLimit {
    /// At most so many reads of one client at a time; `None` for any number.
    pub fn new(most: Option<usize>) -> Self {
        Self { most, reads: Mutex::default() }
    }

    /// Begins a read of `client`, or gives the limit that it has reached.
    pub fn begin(self: &Arc<Self>, client: IpAddr) -> Result<Read, usize> {
        let client = client.to_canonical();
        let mut reads = self.reads();
        let count = reads.entry(client).or_default();
        match self.most {
            Some(most) if *count >= most => Err(most),
            _ => {
                *count += 1;
                Ok(Read { limit: Arc::clone(self), client })
            }
        }
    }

    fn reads(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        let mut reads = self.limit.reads();
        if let Some(count) = reads.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                reads.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_share() {
        let limit = Arc::new(ReadLimit::new(Some(2)));
        let [one, two]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
        let first = limit.begin(one).unwrap();
        let _second = limit.begin("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert_eq!(limit.begin(one).unwrap_err(), 2);
        let other = limit.begin(two).unwrap();
        drop(first);
        assert!(limit.begin(one).is_ok());
        drop(other);
        assert!(!limit.reads().contains_key(&two), "who reads nothing is forgotten");
    }

    #[test]
    fn without_a_limit_everyone_reads() {
        let limit = Arc::new(ReadLimit::new(None));
        let client: IpAddr = "::1".parse().unwrap();
        let reads: Vec<_> = (0..1000).map(|_| limit.begin(client).unwrap()).collect();
        drop(reads);
    }
}
