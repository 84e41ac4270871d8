//! `Link: <…>; rel="next"`: where a list goes on (RFC 8288).

use http::HeaderMap;
use http::header::LINK;

/// The target of the link to the next page.
pub(super) fn next(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(links).find(|(_, next)| *next).map(|(target, _)| target.to_owned())
}

/// The targets of one header and whether each is the next page.
fn links(mut header: &str) -> Vec<(&str, bool)> {
    let mut links = Vec::new();
    while let Some((target, rest)) =
        header.split_once('<').and_then(|(_, after)| after.split_once('>'))
    {
        let end = rest.find('<').unwrap_or(rest.len());
        links.push((target, rest[..end].split([';', ',']).any(is_next)));
        header = &rest[end..];
    }
    links
}

fn is_next(parameter: &str) -> bool {
    let Some((key, value)) = parameter.split_once('=') else { return false };
    key.trim().eq_ignore_ascii_case("rel")
        && value.trim().trim_matches('"').split(' ').any(|word| word.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_next_page_is_found() {
        for (header, expected) in [
            (r#"</v2/a/tags/list?n=1&last=b>; rel="next""#, Some("/v2/a/tags/list?n=1&last=b")),
            ("<https://h/p>;rel=next", Some("https://h/p")),
            (r#"<a>; rel="prev", <b>; title="x"; REL="last next""#, Some("b")),
            (r#"<a>; rel="prev""#, None),
            ("<a>", None),
            ("<a", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, HeaderValue::from_static(header));
            assert_eq!(next(&headers).as_deref(), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "[<>;,=\"a rel]{0,40}") {
            links(&header);
        }
    }
}
