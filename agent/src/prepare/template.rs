//! The image template: which images there are, and which parameters and services each is for.
//!
//! A template is Jinja that renders to YAML: a map with the key `container_images_template`, a
//! list of `{imagename, image_source, params, services}`. Ours are built in, one per family of
//! releases; tripleo-common's `tripleo_containers.yaml.j2` works as well, with the templates
//! that lie next to it for its includes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::{Environment, path_loader};

use super::release::Release;
use super::yaml::{self, Map, Value, YamlError};

/// Where the image template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// The one that is built in for the release.
    BuiltIn(Release),
    /// A file.
    File(PathBuf),
}

/// An image that the template names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TemplateImage {
    /// Registry, namespace, name and tag.
    pub imagename: String,
    /// Which project makes it (`kolla`, `tripleo`, `ceph`).
    pub source: Option<String>,
    /// The Heat parameters that name it.
    pub params: Vec<String>,
    /// The Heat resource types of the services that need it.
    pub services: Vec<String>,
}

/// A template that cannot be used; it names the template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file cannot be read.
    #[error("cannot read the image template {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The template is not Jinja, or fails.
    #[error("the image template {name} cannot be rendered")]
    Render {
        /// The template.
        name: String,
        /// Where and why.
        source: Box<minijinja::Error>,
    },
    /// What was rendered is not YAML.
    #[error("the image template {name} renders to malformed YAML")]
    Yaml {
        /// The template.
        name: String,
        /// Where in the rendered text, and why.
        source: YamlError,
    },
    /// What was rendered is not a list of images.
    #[error(
        "the image template {name} has no list `container_images_template` of images with an `imagename`"
    )]
    Shape {
        /// The template.
        name: String,
    },
}

/// A template that was read, to be rendered once per entry.
pub struct ImageTemplate {
    name: String,
    text: String,
    jinja: Environment<'static>,
}

impl ImageTemplate {
    /// Reads the template.
    ///
    /// # Errors
    /// [`TemplateError::Read`] where the file cannot be read.
    pub fn load(source: &TemplateSource) -> Result<Self, TemplateError> {
        let mut jinja = Environment::new();
        let (name, text) = match source {
            TemplateSource::BuiltIn(release) => {
                (format!("built in for {release}"), release.image_template().to_owned())
            }
            TemplateSource::File(path) => {
                jinja.set_loader(path_loader(path.parent().unwrap_or(Path::new("."))));
                let text = std::fs::read_to_string(path)
                    .map_err(|source| TemplateError::Read { path: path.clone(), source })?;
                (path.display().to_string(), text)
            }
        };
        Ok(Self { name, text, jinja })
    }

    /// The images of the template with the values in `set`.
    ///
    /// # Errors
    /// [`TemplateError`] where the template fails or does not render to a list of images.
    pub fn render(&self, set: &Map) -> Result<Vec<TemplateImage>, TemplateError> {
        let name = || self.name.clone();
        let text = self
            .jinja
            .render_named_str(&self.name, &self.text, map_to_jinja(set))
            .map_err(|error| TemplateError::Render { name: name(), source: Box::new(error) })?;
        let document =
            yaml::read(&text).map_err(|source| TemplateError::Yaml { name: name(), source })?;
        let images = document.as_map().and_then(|map| map.get("container_images_template"));
        let images = images.and_then(Value::as_list);
        let images: Option<_> =
            images.and_then(|images| images.iter().map(TemplateImage::parse).collect());
        images.ok_or_else(|| TemplateError::Shape { name: name() })
    }
}

impl TemplateImage {
    fn parse(value: &Value) -> Option<Self> {
        let image = value.as_map()?;
        let words = |key: &str| match image.get(key) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(value) => Some(value.as_list()?.iter().map(Value::to_string).collect()),
        };
        Some(Self {
            imagename: image.get("imagename")?.to_string(),
            source: image.get("image_source").map(Value::to_string),
            params: words("params")?,
            services: words("services")?,
        })
    }
}

/// The values that an entry's template is rendered with: its `set`, the defaults for what it
/// leaves out, and hyphens between prefix, name and suffix.
///
/// A key that is present and null stays null and renders as `None`. `neutron_driver` is the
/// exception: any empty value gives way to `driver`.
pub fn substitutions(set: &Map, defaults: Map, driver: Option<&str>) -> Map {
    let mut values = defaults;
    for (key, value) in set.iter() {
        values.insert(key, value.clone());
    }
    if let Some(driver) = driver
        && !set.get("neutron_driver").is_some_and(Value::is_truthy)
    {
        values.insert("neutron_driver", driver);
    }
    let hyphenated = |value: Option<&Value>, at_end: bool| {
        let text = value.filter(|value| value.is_truthy())?.to_string();
        match at_end {
            true if !text.ends_with('-') => Some(text + "-"),
            false if !text.starts_with('-') => Some(format!("-{text}")),
            _ => None,
        }
    };
    if let Some(prefix) = hyphenated(values.get("name_prefix"), true) {
        values.insert("name_prefix", prefix);
    }
    if let Some(suffix) = hyphenated(values.get("name_suffix"), false) {
        values.insert("name_suffix", suffix);
    }
    values
}

/// The value as the template sees it. Numbers that Jinja would print in another way than Python
/// go in as text.
fn to_jinja(value: &Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(value) => minijinja::Value::from(*value),
        Value::Int(value) => minijinja::Value::from(*value),
        // As text it would be true.
        Value::Float(zero) if *zero == 0.0 => minijinja::Value::from(*zero),
        Value::Float(_) => minijinja::Value::from(value.to_string()),
        Value::Text(text) => minijinja::Value::from(indented(text)),
        Value::List(items) => items.iter().map(to_jinja).collect(),
        Value::Map(map) => map_to_jinja(map),
    }
}

/// The text with its later lines further in than any key of a template. PyYAML lets the lines of a
/// text in quotes begin anywhere, our reader wants them inside of their key; where they are folded
/// into one, what they begin with does not count.
fn indented(text: &str) -> String {
    let mut indented = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        indented.push(c);
        if c == '\n' || (c == '\r' && chars.peek() != Some(&'\n')) {
            indented.push_str("    ");
        }
    }
    indented
}

fn map_to_jinja(map: &Map) -> minijinja::Value {
    let values: BTreeMap<_, _> =
        map.iter().map(|(key, value)| (key.to_owned(), to_jinja(value))).collect();
    minijinja::Value::from_object(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Map {
        yaml::read(text).unwrap().as_map().unwrap().clone()
    }

    fn names(release: Release, text: &str) -> Vec<String> {
        let template = ImageTemplate::load(&TemplateSource::BuiltIn(release)).unwrap();
        let values = substitutions(&set(text), release.default_set(), Some("ovn"));
        template.render(&values).unwrap().into_iter().map(|image| image.imagename).collect()
    }

    #[test]
    fn the_built_in_templates_name_the_images_of_their_releases() {
        for (release, count, name) in [
            (Release::Queens, 94, "docker.io/tripleoqueens/centos-binary-nova-api:current-tripleo"),
            (Release::Stein, 131, "docker.io/tripleostein/centos-binary-nova-api:current-tripleo"),
            (Release::Zed, 95, "quay.io/tripleomastercentos9/openstack-nova-api:current-tripleo"),
        ] {
            let names = names(release, "{}");
            assert!(names.iter().any(|known| known == name), "{release}");
            assert_eq!(names.len(), count, "{release}");
        }
    }

    #[test]
    fn the_built_in_templates_name_parameters_and_services() {
        for release in [Release::Queens, Release::Stein, Release::Zed] {
            let template = ImageTemplate::load(&TemplateSource::BuiltIn(release)).unwrap();
            for image in template.render(&release.default_set()).unwrap() {
                assert!(image.params.iter().all(|name| name.ends_with("Image")), "{image:?}");
                assert!(image.services.iter().all(|name| name.starts_with("OS::")), "{image:?}");
            }
        }
    }

    #[test]
    fn values_are_typed_as_in_yaml_and_print_as_in_python() {
        let has = |text: &str, name: &str| {
            let names = names(Release::Zed, text);
            assert!(names.iter().any(|known| known == name), "{name} not in {names:?}");
        };
        has("{namespace: n, tag: 17.10}", "n/openstack-keystone:17.1");
        has("{namespace: n, tag: '17.10'}", "n/openstack-keystone:17.10");
        has("{namespace: n, tag: null}", "n/openstack-keystone:None");
        has("{namespace: n, name_prefix: acme, name_suffix: x86, tag: t}", "n/acme-keystone-x86:t");
        has("{namespace: n, name_prefix: '', tag: t}", "n/keystone:t");
        has("{ceph_haproxy_tag: 2.3}", "quay.io/ceph/haproxy:2.3");
    }

    #[test]
    fn regression_the_lines_of_a_value_are_folded_into_one() {
        for (text, name) in [
            ("namespace: >\n  r/ns\ntag: t", "r/ns /openstack-keystone:t"),
            ("namespace: r/ns\ntag: |\n  t\n", "r/ns/openstack-keystone:t "),
            ("namespace: r/ns\ntag: |-\n  t\n  u\n", "r/ns/openstack-keystone:t u"),
            ("namespace: r/ns\ntag: \"t\\n\\nu\"", "r/ns/openstack-keystone:t\nu"),
            ("namespace: r/ns\ntag: \"t\\r\\nu\"", "r/ns/openstack-keystone:t u"),
        ] {
            let names = names(Release::Zed, text);
            assert!(names.iter().any(|known| known == name), "{name:?} not in {names:?}");
        }
    }

    #[test]
    fn ceph_and_neutron_images_depend_on_the_set() {
        let count = |text: &str| names(Release::Zed, text).len();
        assert_eq!(count("{}") - count("{ceph_images: false}"), 7);
        assert_eq!(count("{}") - count("{neutron_driver: other}"), 5);
        assert_eq!(count("{}"), count("{neutron_driver: null}"));
    }

    #[test]
    fn a_template_file_includes_its_neighbours() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text);
        write("ceph.j2", "- imagename: \"{{ceph_namespace}}/c\"\n  image_source: ceph\n").unwrap();
        write(
            "all.yaml.j2",
            "container_images_template:\n\n- imagename: \"{{namespace}}/a:{{tag}}{{nothing}}\"\n  params:\n  - P\n\
             {% if x is defined %}\n- imagename: x\n{% elif not y %}\n- imagename: y\n{% endif %}\n\
             {% if ceph_images | default(true) %}\n{% include 'ceph.j2' %}\n{% endif %}\n",
        )
        .unwrap();
        let source = TemplateSource::File(directory.path().join("all.yaml.j2"));
        let template = ImageTemplate::load(&source).unwrap();
        let images = template.render(&set("{namespace: n, tag: t, ceph_namespace: q}")).unwrap();
        let names: Vec<_> = images.iter().map(|image| image.imagename.as_str()).collect();
        assert_eq!(names, ["n/a:t", "y", "q/c"]);
        assert_eq!(images[0].params, ["P"]);
    }

    #[test]
    fn bad_templates_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bad.j2");
        for (text, words) in [
            ("{% if %}", "cannot be rendered"),
            ("a: [", "malformed YAML"),
            ("images: []", "no list `container_images_template`"),
        ] {
            std::fs::write(&path, text).unwrap();
            let template = ImageTemplate::load(&TemplateSource::File(path.clone())).unwrap();
            let error = template.render(&Map::default()).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("bad.j2"), "{error}");
        }
        let absent = TemplateSource::File(directory.path().join("absent.j2"));
        assert!(ImageTemplate::load(&absent).is_err());
    }

    #[test]
    fn regression_zero_is_false_and_looks_like_python_s() {
        let mut template = ImageTemplate::load(&TemplateSource::BuiltIn(Release::Zed)).unwrap();
        template.text =
            "container_images_template: [{imagename: '{{ a }}{% if a %}!{% endif %}'}]".to_owned();
        for (value, rendered) in [
            ("0.0", "0.0"),
            ("-0.0", "-0.0"),
            ("0", "0"),
            ("''", ""),
            ("1.0", "1.0!"),
            ("1e+20", "1e+20!"),
            ("2.10", "2.1!"),
        ] {
            let images = template.render(&set(&format!("a: {value}"))).unwrap();
            assert_eq!(images[0].imagename, rendered, "{value}");
        }
    }
}
