//! Reads Rust sources for the modules and crates that they name, and compares that with a
//! table of layers: a module may name those below it, never its neighbours or those above.
//!
//! It works on text, not on resolved names: `crate::a::b`, `use crate::{a, b::c}` and the same
//! through `super`. Unit tests (from `#[cfg(test)] mod NAME {` to the end of the file, by house
//! style) and comments do not count.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The layers of one crate, lowest first; the modules of one layer do not know each other.
pub struct Layers(pub &'static [&'static [&'static str]]);

/// One source file: its path below `src` (as `fuse/reply.rs`) and its text.
pub struct Source {
    /// Path below `src`, with `/`.
    pub path: String,
    /// The text without comments and unit tests.
    code: String,
}

impl Source {
    /// A file of the crate, from its path below `src` and its text.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), code: code_only(text) }
    }

    /// All `.rs` files below `src`.
    pub fn read_all(src: &Path) -> Vec<Self> {
        let mut sources = Vec::new();
        read_below(src, "", &mut sources);
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        sources
    }

    /// The top-level module that the file belongs to; none for `lib.rs` and `main.rs`, which
    /// declare the modules.
    pub fn module(&self) -> Option<&str> {
        let first = self.path.split('/').next().unwrap_or_default();
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(name, "lib" | "main")).then_some(name)
    }

    /// The top-level modules of its own crate that the file names.
    pub fn named_modules(&self) -> Vec<String> {
        let depth = self.path.strip_suffix("/mod.rs").unwrap_or(&self.path).split('/').count();
        let root = "super::".repeat(depth);
        let mut names = names_after(&self.code, "crate::");
        names.extend(names_after(&self.code, &root));
        names.sort();
        names.dedup();
        names
    }

    /// Whether the code holds the path `needle` (`std::env`, `clap`) as words of its own.
    pub fn names(&self, needle: &str) -> bool {
        self.code.match_indices(needle).any(|(at, _)| {
            let before = self.code[..at].chars().next_back();
            let after = self.code[at + needle.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
    }
}

/// What in `sources` breaks `layers`, one sentence each.
pub fn violations(sources: &[Source], layers: &Layers) -> Vec<String> {
    let rank: BTreeMap<&str, usize> = layers
        .0
        .iter()
        .enumerate()
        .flat_map(|(level, modules)| modules.iter().map(move |module| (*module, level)))
        .collect();
    let mut found = Vec::new();
    for source in sources {
        let Some(module) = source.module() else { continue };
        let Some(own) = rank.get(module) else {
            found.push(format!("{}: the module `{module}` has no place in the table", source.path));
            continue;
        };
        for named in source.named_modules() {
            // A name without a place is an item of lib.rs or a module that is reported itself.
            let Some(level) = rank.get(named.as_str()) else { continue };
            if named != module && level >= own {
                found.push(format!("{}: `{module}` must not name `{named}`", source.path));
            }
        }
    }
    found
}

/// The dependencies of a workspace manifest that lack a reason (a comment on the same line).
pub fn dependencies_without_reason(manifest: &str) -> Vec<String> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.contains('=') && !line.starts_with('#') && !line.contains("path ="))
        .filter(|line| line.split_once(" # ").is_none_or(|(_, reason)| reason.trim().len() < 10))
        .map(|line| line.split('=').next().unwrap_or_default().trim().to_owned())
        .collect()
}

/// The dependencies of a member's manifest that bring a version of their own.
pub fn dependencies_outside_workspace(manifest: &str) -> Vec<String> {
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            in_dependencies = section.trim_end_matches(']').ends_with("dependencies");
        } else if in_dependencies && line.contains('=') {
            let (name, value) = line.split_once('=').unwrap_or_default();
            let inherited = name.trim().ends_with(".workspace")
                || value.contains("workspace = true")
                || value.contains("path =");
            if !inherited {
                found.push(name.trim().to_owned());
            }
        }
    }
    found
}

fn read_below(directory: &Path, prefix: &str, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{prefix}{name}");
        if entry.file_type().unwrap().is_dir() {
            read_below(&entry.path(), &format!("{path}/"), sources);
        } else if name.ends_with(".rs") {
            sources.push(Source::new(&path, &fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

fn code_only(text: &str) -> String {
    let lines =
        text[..end_of_code(text)].lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Where the unit tests begin. A `#[cfg(test)]` before anything else than a module with a body,
/// such as `mod testing;` among the other modules, ends nothing.
fn end_of_code(text: &str) -> usize {
    let is_body = |rest: &str| {
        let line = rest.lines().next().unwrap_or_default();
        line.starts_with("mod ") && line.contains('{')
    };
    let mark = "\n#[cfg(test)]\n";
    let mut marks = text.match_indices(mark);
    marks.find(|(at, _)| is_body(&text[at + mark.len()..])).map_or(text.len(), |(at, _)| at)
}

/// The first path segment after each `prefix` of `code`, looking into `prefix{a, b::c}`.
fn names_after(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].chars().next_back().is_some_and(|c| is_word(c) || matches!(c, '$' | ':')) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(names_of_group(group)),
            None => names.push(first_word(rest)),
        }
    }
    names.retain(|name| !name.is_empty() && name != "super");
    names
}

/// The first segments of the members of a `use` group, given the text behind its `{`.
fn names_of_group(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(first_word(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(first_word(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn first_word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| is_word(*c)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: Layers = Layers(&[&["digest"], &["codec", "index"], &["view"]]);

    fn verdict(path: &str, text: &str) -> Vec<String> {
        violations(&[Source::new(path, text)], &LAYERS)
    }

    #[test]
    fn a_module_may_name_those_below_it() {
        let text = "use crate::{digest::{Digest, Hasher}, index};\nfn f(c: crate::codec::Codec) {}";
        assert_eq!(verdict("view.rs", text), [""; 0]);
    }

    #[test]
    fn upward_and_sideways_names_are_found_however_they_are_written() {
        for text in [
            "use crate::view::View;",
            "use crate::{\n    digest::{Digest, Hasher},\n    view,\n};",
            "fn f() { crate::index::open() }",
            "use super::super::view::View;",
            "pub(crate) use crate::index;",
        ] {
            assert_eq!(verdict("codec/gzip.rs", text).len(), 1, "{text}");
        }
        assert_eq!(
            verdict("codec.rs", "use super::view;"),
            ["codec.rs: `codec` must not name `view`"]
        );
    }

    #[test]
    fn comments_tests_own_parts_and_other_crates_do_not_count() {
        let text = "//! See crate::view.\nuse crate::codec::Span; // crate::view\nuse super::Span;\n\
                    use other_crate::view;\n\n#[cfg(test)]\nmod tests { use crate::view; }\n";
        assert_eq!(verdict("codec/gzip.rs", text), [""; 0]);
    }

    #[test]
    fn regression_a_module_for_tests_among_the_others_hides_nothing() {
        let text = "#[cfg(test)]\nmod testing;\n\nuse crate::view;\n";
        assert_eq!(verdict("codec.rs", &format!("mod gzip;\n{text}")).len(), 1);
    }

    #[test]
    fn a_module_without_a_place_is_reported() {
        assert_eq!(verdict("utils.rs", "").len(), 1);
        assert_eq!(verdict("lib.rs", "pub mod utils;"), [""; 0]);
    }

    #[test]
    fn forbidden_crates_are_found_as_words() {
        let source = Source::new("a.rs", "use std::env;\nlet environment = my_clap::x();");
        assert!(source.names("std::env"));
        assert!(!source.names("clap"));
    }

    #[test]
    fn a_dependency_without_a_reason_is_reported() {
        let manifest = "[workspace.dependencies]\nown = { path = \"own\" }\n# --- part ---\n\
                        a = \"1\" # because it is needed\nb = { version = \"2\" }\nc = \"3\" # eh\n\
                        [profile.dev]\nd = 1\n";
        assert_eq!(dependencies_without_reason(manifest), ["b", "c"]);
    }

    #[test]
    fn a_version_outside_the_workspace_is_reported() {
        let manifest = "[package]\nversion = \"1\"\n[dependencies]\na.workspace = true\nb = \"2\"\n\
                        [dev-dependencies]\nc = { workspace = true }\nd = { version = \"1\" }\n";
        assert_eq!(dependencies_outside_workspace(manifest), ["b", "d"]);
    }
}
