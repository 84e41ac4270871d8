//! Names that nobody can guess.

use rustls::crypto::ring::default_provider;

/// `N` random bytes as hex digits.
pub fn hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    default_provider().secure_random.fill(&mut bytes).expect("the kernel gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_length_and_differ() {
        let (one, two) = (hex::<16>(), hex::<16>());
        assert_eq!(one.len(), 32);
        assert_ne!(one, two);
    }
}
