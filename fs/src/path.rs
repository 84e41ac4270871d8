//! Paths of archive members.

/// The names of a path without empty ones and `.`; `..` goes up, but never above the root.
pub fn clean(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ => names.push(name.to_vec()),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_lexically_and_stay_inside() {
        for (path, cleaned) in [
            ("./a//b/./c", "a/b/c"),
            ("/a/../b", "b"),
            ("../../x", "x"),
            ("a/../../x", "x"),
            ("./", ""),
        ] {
            assert_eq!(clean(path.as_bytes()).join(&b'/'), cleaned.as_bytes(), "{path}");
        }
    }
}
