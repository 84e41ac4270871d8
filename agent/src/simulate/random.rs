//! Chance that a seed decides: SplitMix64 (Steele, Lea, Flood 2014).

/// A sequence of numbers that its seed decides.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        spread(self.0)
    }

    /// A number of at least 0 and less than `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// A number of at least 0 and less than 1.
    pub fn part(&mut self) -> f64 {
        part_of(self.number())
    }

    /// Another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for place in (1..items.len()).rev() {
            items.swap(place, self.below(place + 1));
        }
    }
}

/// A number as a part of all numbers: at least 0 and less than 1.
pub fn part_of(number: u64) -> f64 {
    (number >> 11) as f64 / (1_u64 << 53) as f64
}

/// Another number for each number, which looks like chance.
pub fn spread(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_and_all_values_come() {
        let (mut one, mut two) = (Random::new(7), Random::new(7));
        let mut items: Vec<usize> = (0..100).collect();
        one.shuffle(&mut items);
        let mut others: Vec<usize> = (0..100).collect();
        two.shuffle(&mut others);
        assert_eq!(items, others);
        items.sort_unstable();
        assert!(items.iter().copied().eq(0..100));
        let mean = (0..10_000).map(|_| one.part()).sum::<f64>() / 10_000.0;
        assert!((0.49..0.51).contains(&mean), "{mean}");
    }
}
