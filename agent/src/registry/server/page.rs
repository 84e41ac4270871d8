//! Pages of a sorted list: `?n=<how many>&last=<after which>` and the `Link` to the next page
//! (distribution-spec, "Listing Tags").

/// Which part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageRequest {
    /// At most so many entries; all if absent.
    pub n: Option<usize>,
    /// Only entries after this one, which need not exist.
    pub last: Option<String>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<String>,
    /// The value of the `Link` header, if entries follow.
    pub link: Option<String>,
}

impl PageRequest {
    /// Cuts the page out of `entries`, which belong to the list at `path`. Sorts them by their
    /// bytes.
    pub fn cut(&self, path: &str, mut entries: Vec<String>) -> Page {
        entries.sort_unstable();
        if let Some(last) = &self.last {
            let first = entries.partition_point(|entry| entry <= last);
            entries.drain(..first);
        }
        let Some(n) = self.n else { return Page { entries, link: None } };
        let more = entries.len() > n;
        entries.truncate(n);
        let link = entries
            .last()
            .filter(|_| more)
            .map(|last| format!("<{path}?n={n}&last={last}>; rel=\"next\""));
        Page { entries, link }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(n: Option<usize>, last: Option<&str>) -> (Vec<String>, Option<String>) {
        let entries = ["v3", "v1", "v4", "v2"].map(str::to_owned).to_vec();
        let page = PageRequest { n, last: last.map(str::to_owned) }.cut("/v2/a/tags/list", entries);
        (page.entries, page.link)
    }

    #[test]
    fn all_entries_come_sorted() {
        assert_eq!(cut(None, None), (["v1", "v2", "v3", "v4"].map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn pages_follow_each_other_by_their_links() {
        let (first, link) = cut(Some(2), None);
        assert_eq!(first, ["v1", "v2"]);
        assert_eq!(link.unwrap(), "</v2/a/tags/list?n=2&last=v2>; rel=\"next\"");
        assert_eq!(cut(Some(2), Some("v2")), (["v3", "v4"].map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn the_last_entry_need_not_exist() {
        assert_eq!(cut(Some(1), Some("v2x")).0, ["v3"]);
        assert_eq!(cut(None, Some("v4")), (vec![], None));
    }

    #[test]
    fn a_page_of_nothing_has_no_link() {
        assert_eq!(cut(Some(0), None), (vec![], None));
    }
}
