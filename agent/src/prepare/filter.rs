//! Which of the template's images an entry is about.

use std::collections::BTreeSet;

use super::entry::Entry;
use super::pattern::{self, PatternError};
use super::template::TemplateImage;

/// Keeps the images that `entry` asks for and `services` need.
///
/// Patterns are searched in the whole name: registry, namespace, name and tag as rendered. With
/// includes the excludes are not looked at.
///
/// # Errors
/// [`PatternError`] where a pattern takes too long.
pub fn select(
    images: Vec<TemplateImage>,
    entry: &Entry,
    services: Option<&BTreeSet<String>>,
) -> Result<Vec<TemplateImage>, PatternError> {
    let mut selected = Vec::new();
    for image in images {
        if is_deployed(&image, services) && is_wanted(&image.imagename, entry)? {
            selected.push(image);
        }
    }
    Ok(selected)
}

/// Whether a service that is deployed needs the image. An image without services is needed only
/// where nothing is known about services.
fn is_deployed(image: &TemplateImage, services: Option<&BTreeSet<String>>) -> bool {
    services.is_none_or(|services| image.services.iter().any(|service| services.contains(service)))
}

fn is_wanted(imagename: &str, entry: &Entry) -> Result<bool, PatternError> {
    if entry.includes.is_empty() {
        Ok(!pattern::any_in(&entry.excludes, imagename)?)
    } else {
        pattern::any_in(&entry.includes, imagename)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{entry, yaml};
    use super::*;

    fn selected(entry: &str, services: Option<&[&str]>) -> Vec<&'static str> {
        let names =
            [("q/ns/os-nova-api:t1", "Api"), ("q/ns/os-keystone:t1", "Id"), ("q/aee:t1", "")];
        let images = names.map(|(imagename, service)| TemplateImage {
            imagename: imagename.to_owned(),
            services: service.split_whitespace().map(str::to_owned).collect(),
            ..TemplateImage::default()
        });
        let entries = entry::entries("P", &yaml::read(&format!("[{entry}]")).unwrap()).unwrap();
        let services: Option<BTreeSet<_>> =
            services.map(|services| services.iter().map(|&name| name.to_owned()).collect());
        let kept = select(images.into(), &entries[0], services.as_ref()).unwrap();
        names
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| kept.iter().any(|image| image.imagename == *name))
            .collect()
    }

    #[test]
    fn patterns_are_searched_in_the_whole_name() {
        for (entry, count) in [
            ("{}", 3),
            ("{includes: [nova, '^q/aee']}", 2),
            ("{includes: ['t1$']}", 3),
            ("{includes: [nope]}", 0),
            ("{excludes: [nova]}", 2),
            ("{excludes: [nova], includes: [nova]}", 1),
        ] {
            assert_eq!(selected(entry, None).len(), count, "{entry}");
        }
    }

    #[test]
    fn images_that_no_deployed_service_needs_are_left_out() {
        assert_eq!(selected("{}", Some(&["Api"])), ["q/ns/os-nova-api:t1"]);
        assert!(selected("{includes: [keystone]}", Some(&["Api"])).is_empty());
        assert!(selected("{}", Some(&[])).is_empty());
    }
}
