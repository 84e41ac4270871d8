//! Which counters of a sender were seen: those near the highest one by one, and all lower ones as
//! too old (RFC 6479).

/// How many counters are told apart: datagrams of one sender may overtake each other by so many.
pub(super) const SPAN: u64 = 1024;

const WORDS: usize = SPAN as usize / 64;

/// The highest counter, and which of the [`SPAN`] counters up to it were seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    highest: Option<u64>,
    /// Bit `counter % SPAN` says whether that counter was seen.
    seen: [u64; WORDS],
}

impl Window {
    /// Whether `counter` was seen, or is too old to tell.
    pub fn contains(&self, counter: u64) -> bool {
        let Some(highest) = self.highest.filter(|highest| *highest >= counter) else {
            return false;
        };
        let (word, bit) = place(counter);
        highest - counter >= SPAN || self.seen[word] & bit != 0
    }

    /// Marks a counter as seen.
    pub fn insert(&mut self, counter: u64) {
        let highest = self.highest.unwrap_or(counter);
        if counter > highest {
            let passed = (counter - highest).min(SPAN);
            for gone in counter - passed + 1..=counter {
                let (word, bit) = place(gone);
                self.seen[word] &= !bit;
            }
        } else if highest - counter >= SPAN {
            return;
        }
        self.highest = Some(highest.max(counter));
        let (word, bit) = place(counter);
        self.seen[word] |= bit;
    }
}

fn place(counter: u64) -> (usize, u64) {
    let place = counter % SPAN;
    ((place / 64) as usize, 1 << (place % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_of_the_numbers_are_in_reach() {
        let mut window = Window::default();
        for counter in [0, 1, u64::MAX - 1, u64::MAX] {
            assert!(!window.contains(counter));
            window.insert(counter);
            assert!(window.contains(counter), "{counter}");
        }
        assert!(window.contains(2), "too old to tell");
    }

    proptest! {
        #[test]
        fn the_window_is_a_set_of_counters_and_forgets_the_old_as_seen(
            steps in proptest::collection::vec((0..3000_u64, 0..3_u64), 1..300),
        ) {
            let mut window = Window::default();
            let mut model = BTreeSet::new();
            let mut base = 0;
            for (offset, leap) in steps {
                base += leap * 700;
                let counter = base + offset;
                let end = model.last().map_or(0, |last| last + 1);
                let old = end > counter && end - counter > SPAN;
                prop_assert_eq!(window.contains(counter), old || model.contains(&counter));
                window.insert(counter);
                if !old {
                    model.insert(counter);
                }
                for probe in counter.saturating_sub(3)..counter + 3 {
                    let end = model.last().map_or(0, |last| last + 1);
                    let old = end > probe && end - probe > SPAN;
                    prop_assert_eq!(window.contains(probe), old || model.contains(&probe));
                }
            }
        }
    }
}
