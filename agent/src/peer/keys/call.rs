//! The sender of HTTP requests between nodes: requests are signed, and their answers can be sealed.
//!
//! ```text
//! Authorization: Undermount-1 KEY-ID:FROM:TIME:NONCE:MAC
//!
//! KEY-ID  which cluster key                                  16 hex digits
//! FROM    who asks                                           32 hex digits
//! TIME    when, Unix seconds                                 decimal
//! NONCE   makes each call another one                        16 hex digits
//! MAC     HMAC-SHA256 over all of that, the node that is     64 hex digits
//!         asked, the method, the target and the body
//! ```
//!
//! A replayed call is answered as if its sender had repeated it, for as long as [`MAX_CLOCK_SKEW`]
//! allows, by the node that it was for (a join: by any node). Whoever can record calls can record
//! answers as well, so no node remembers calls; every kind of call must bear a repetition.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::aead::{Aad, NONCE_LEN, Nonce};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::{ClusterKeys, Derived, KeyId};
use crate::peer::member::MemberId;

/// The scheme of the header.
const SCHEME: &str = "Undermount-1 ";

/// How far the clocks of two nodes may be apart, and how long a signature is good.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(600);

/// A request as both ends see it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The member that is asked; `None` where its name is not known, as for a join.
    pub to: Option<MemberId>,
    /// The method in capitals.
    pub method: &'a str,
    /// Path and query, as they stand in the request.
    pub target: &'a str,
    /// The body; empty where there is none.
    pub body: &'a [u8],
}

/// A signed request.
#[derive(Debug, Clone)]
pub struct SignedCall {
    /// The value of its `Authorization` header.
    pub header: String,
    key: KeyId,
    mac: [u8; 32],
}

/// The signer of a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The member that it says it is; every holder of the key can say so.
    pub member: MemberId,
    key: KeyId,
    mac: [u8; 32],
}

/// Why a request is refused (401), or an answer is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It has no header of this kind.
    #[error("the request is not signed by a member of the cluster")]
    Unsigned,
    /// It is signed with a key that this node does not have.
    #[error("the request is signed with the key {0:?}, which this node does not have")]
    Key(KeyId),
    /// The signature is wrong.
    #[error("the signature of the request is wrong")]
    Forged,
    /// It was signed too long ago, or in the future.
    #[error("the request was signed {0} s away from this node's time: is a clock wrong?")]
    Clock(u64),
    /// The answer was not sealed by a member of the cluster, or not for this call.
    #[error("the answer is not sealed by a member of the cluster")]
    Answer,
}

impl ClusterKeys {
    /// Signs a call of `from` with the key in use, at the time `now`.
    pub fn sign(&self, from: MemberId, call: &Call<'_>, now: SystemTime) -> SignedCall {
        let ring = self.ring();
        let key = ring.used();
        let at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claim = Claim { from, at, nonce: random() };
        let mac: [u8; 32] =
            claim.sign(key, call).as_ref().try_into().expect("SHA-256 has 32 bytes");
        let header = format!("{SCHEME}{}:{from}:{at}:{}:{}", key.id, hex(&claim.nonce), hex(&mac));
        SignedCall { header, key: key.id, mac }
    }

    /// Checks the `Authorization` header of a call that arrived at `now`, and returns who has
    /// signed it.
    ///
    /// # Errors
    /// [`CallError`] where no holder of the cluster key has signed it, or not within
    /// [`MAX_CLOCK_SKEW`].
    pub fn check(
        &self,
        header: Option<&str>,
        call: &Call<'_>,
        now: SystemTime,
    ) -> Result<Caller, CallError> {
        let (id, claim, mac) = header.and_then(parse).ok_or(CallError::Unsigned)?;
        let ring = self.ring();
        let key = ring.get(id).ok_or(CallError::Key(id))?;
        hmac::verify(claim.key(key, call), &claim.message(key, call), &mac)
            .map_err(|_| CallError::Forged)?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let skew = now.abs_diff(claim.at);
        if skew > MAX_CLOCK_SKEW.as_secs() {
            return Err(CallError::Clock(skew));
        }
        Ok(Caller { member: claim.from, key: id, mac })
    }

    /// Seals the answer to a call, so that only its sender can open it, and only as the answer to
    /// this call. The result is nonce, ciphertext, tag (AES-256-GCM).
    ///
    /// # Errors
    /// [`CallError::Key`] where the key of the call was replaced meanwhile.
    pub fn seal_answer(&self, caller: &Caller, mut answer: Vec<u8>) -> Result<Vec<u8>, CallError> {
        let ring = self.ring();
        let key = ring.get(caller.key).ok_or(CallError::Key(caller.key))?;
        let nonce: [u8; NONCE_LEN] = random();
        let sealed = Nonce::assume_unique_for_key(nonce);
        key.answer(&caller.mac)
            .seal_in_place_append_tag(sealed, Aad::empty(), &mut answer)
            .map_err(|_| CallError::Answer)?;
        Ok([&nonce[..], &answer].concat())
    }

    /// Opens the sealed answer to a call.
    ///
    /// # Errors
    /// [`CallError::Answer`] where nobody of the cluster has sealed it for this call.
    pub fn open_answer(&self, call: &SignedCall, sealed: &[u8]) -> Result<Vec<u8>, CallError> {
        let ring = self.ring();
        let key = ring.get(call.key).ok_or(CallError::Answer)?;
        let (nonce, sealed) = sealed.split_first_chunk().ok_or(CallError::Answer)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut answer = sealed.to_vec();
        let length = key
            .answer(&call.mac)
            .open_in_place(nonce, Aad::empty(), &mut answer)
            .map_err(|_| CallError::Answer)?
            .len();
        answer.truncate(length);
        Ok(answer)
    }
}

/// The claims of a header.
struct Claim {
    from: MemberId,
    at: u64,
    nonce: [u8; 8],
}

impl Claim {
    fn key<'k>(&self, key: &'k Derived, call: &Call<'_>) -> &'k hmac::Key {
        if call.to.is_some() { &key.call } else { &key.join }
    }

    /// The bytes that are signed. Each part has a fixed length or is preceded by its length.
    fn message(&self, key: &Derived, call: &Call<'_>) -> Vec<u8> {
        let to = call.to.unwrap_or(MemberId::from_bytes([0; 16]));
        let mut message = Vec::with_capacity(128 + call.target.len() + call.body.len());
        message.extend(key.id.as_bytes());
        message.extend(self.from.as_bytes());
        message.extend(to.as_bytes());
        message.extend(self.at.to_be_bytes());
        message.extend(self.nonce);
        for part in [call.method.as_bytes(), call.target.as_bytes(), call.body] {
            message.extend((part.len() as u64).to_be_bytes());
            message.extend(part);
        }
        message
    }

    fn sign(&self, key: &Derived, call: &Call<'_>) -> hmac::Tag {
        hmac::sign(self.key(key, call), &self.message(key, call))
    }
}

/// Splits a header into the name of the key, the claim and the signature.
fn parse(header: &str) -> Option<(KeyId, Claim, [u8; 32])> {
    let mut words = header.strip_prefix(SCHEME)?.split(':');
    let key = KeyId::from_bytes(unhex(words.next()?)?);
    let from = words.next()?.parse().ok()?;
    let at = words.next()?.parse().ok()?;
    let nonce = unhex(words.next()?)?;
    let mac = unhex(words.next()?)?;
    words.next().is_none().then_some((key, Claim { from, at, nonce }, mac))
}

/// Random bytes from the kernel.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(word: &str) -> Option<[u8; N]> {
    if word.len() != 2 * N || !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&word[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::keys;
    use super::super::{KeyFile, SecretKey};
    use super::*;

    const FROM: MemberId = MemberId::from_bytes([7; 16]);
    const TO: MemberId = MemberId::from_bytes([9; 16]);
    const CALL: Call<'_> = Call { to: Some(TO), method: "GET", target: "/v1/x?a=1", body: b"b" };

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    #[test]
    fn a_signed_call_names_its_caller() {
        let header = keys(1).sign(FROM, &CALL, now()).header;
        assert_eq!(keys(1).check(Some(&header), &CALL, now()).unwrap().member, FROM);
    }

    #[test]
    fn a_call_that_differs_in_anything_is_refused() {
        let header = keys(1).sign(FROM, &CALL, now()).header;
        let refused = |call: Call<'_>| keys(1).check(Some(&header), &call, now()).unwrap_err();
        for call in [
            Call { to: Some(FROM), ..CALL },
            Call { to: None, ..CALL },
            Call { method: "POST", ..CALL },
            Call { target: "/v1/x?a=2", ..CALL },
            Call { target: "/v1/x?a=1b", body: b"", ..CALL },
            Call { body: b"", ..CALL },
        ] {
            assert_eq!(refused(call), CallError::Forged, "{call:?}");
        }
        let other = header.replace(&FROM.to_string(), &TO.to_string());
        assert_eq!(keys(1).check(Some(&other), &CALL, now()).unwrap_err(), CallError::Forged);
    }

    #[test]
    fn who_is_outside_the_cluster_is_refused() {
        let header = keys(2).sign(FROM, &CALL, now()).header;
        let error = keys(1).check(Some(&header), &CALL, now()).unwrap_err();
        assert_eq!(error, CallError::Key(keys(2).ids()[0]));
        for header in [None, Some(""), Some("Basic eDp5"), Some("Undermount-1 "), Some(SCHEME)] {
            let error = keys(1).check(header, &CALL, now()).unwrap_err();
            assert_eq!(error, CallError::Unsigned, "{header:?}");
        }
    }

    #[test]
    fn a_call_is_good_for_minutes() {
        let header = keys(1).sign(FROM, &CALL, now()).header;
        for (time, fits) in [
            (now() + MAX_CLOCK_SKEW, true),
            (now() - MAX_CLOCK_SKEW, true),
            (now() + MAX_CLOCK_SKEW + Duration::from_secs(1), false),
            (now() - MAX_CLOCK_SKEW - Duration::from_secs(1), false),
        ] {
            let checked = keys(1).check(Some(&header), &CALL, time);
            assert_eq!(checked.err(), (!fits).then_some(CallError::Clock(601)));
        }
    }

    #[test]
    fn an_answer_opens_for_its_call_alone() {
        let (client, server) = (keys(1), keys(1));
        let call = client.sign(FROM, &CALL, now());
        let caller = server.check(Some(&call.header), &CALL, now()).unwrap();
        let sealed = server.seal_answer(&caller, b"members".to_vec()).unwrap();
        assert_eq!(client.open_answer(&call, &sealed).unwrap(), b"members");
        let again = client.sign(FROM, &CALL, now());
        assert_eq!(client.open_answer(&again, &sealed), Err(CallError::Answer));
        for at in 0..sealed.len() {
            let mut wrong = sealed.clone();
            wrong[at] ^= 1;
            assert_eq!(client.open_answer(&call, &wrong), Err(CallError::Answer), "byte {at}");
        }
        assert_eq!(client.open_answer(&call, &sealed[..5]), Err(CallError::Answer));
    }

    #[test]
    fn calls_and_answers_cross_a_rotation() {
        let mut file = KeyFile::single(SecretKey::from_bytes([1; 32]));
        let (client, server) = (ClusterKeys::new(&file), ClusterKeys::new(&file));
        for _ in 0..3 {
            file.rotate(SecretKey::from_bytes([2; 32]));
            server.replace(&file);
            let call = client.sign(FROM, &CALL, now());
            let caller = server.check(Some(&call.header), &CALL, now()).unwrap();
            let sealed = server.seal_answer(&caller, vec![1]).unwrap();
            assert_eq!(client.open_answer(&call, &sealed).unwrap(), [1]);
            client.replace(&file);
        }
    }
}
