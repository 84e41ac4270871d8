//! A store of things that come and go, whose keys are never used twice: who still holds the key
//! of something that is gone finds nothing, and not what took its place.

/// The key of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    place: u32,
    life: u32,
}

impl Key {
    /// A number that is its own.
    pub fn number(self) -> u64 {
        u64::from(self.place) << 32 | u64::from(self.life)
    }

    /// The key whose number this is.
    pub fn of(number: u64) -> Self {
        Self { place: (number >> 32) as u32, life: number as u32 }
    }
}

/// The things.
#[derive(Debug)]
pub struct Arena<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Arena<T> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// Takes a thing in.
    pub fn insert(&mut self, thing: T) -> Key {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("fewer than 4 G things live at a time")
        });
        let (life, content) = &mut self.places[place as usize];
        *content = Some(thing);
        Key { place, life: *life }
    }

    /// The thing, if it is still there.
    pub fn get(&self, key: Key) -> Option<&T> {
        let (life, content) = self.places.get(key.place as usize)?;
        content.as_ref().filter(|_| *life == key.life)
    }

    /// The thing to change, if it is still there.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (life, content) = self.places.get_mut(key.place as usize)?;
        content.as_mut().filter(|_| *life == key.life)
    }

    /// Gives the thing away, if it is still there.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let (life, content) = self.places.get_mut(key.place as usize)?;
        let thing = content.take_if(|_| *life == key.life)?;
        *life += 1;
        self.free.push(key.place);
        Some(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_own_thing_or_none() {
        let mut arena = Arena::new();
        let (one, two) = (arena.insert("one"), arena.insert("two"));
        assert_eq!(arena.remove(one), Some("one"));
        let three = arena.insert("three");
        assert_eq!((arena.get(one), arena.get(two)), (None, Some(&"two")));
        assert_eq!(arena.remove(one), None);
        assert_eq!(arena.get_mut(three), Some(&mut "three"));
        assert_eq!(Key::of(three.number()), three);
    }
}
