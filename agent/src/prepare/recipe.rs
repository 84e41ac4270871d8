//! Recipes of images: TripleO's `tcib` tree, one directory per image, which is built on the image
//! of the directory around it.
//!
//! ```text
//! tcib/base/base.yaml                    on the base image
//! tcib/base/os/os.yaml                   on base
//! tcib/base/os/nova-base/nova-api/*.yaml on nova-base
//! ```
//! A directory without YAML is no image, only a place. Of several files the later adds to the
//! earlier, key by key.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::document::{self, DocumentError};
use super::yaml::{Map, Value};

/// How deep directories may lie in each other.
const MAX_DEPTH: usize = 16;

/// How one image is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The image: the name of its directory.
    pub name: String,
    /// The image that it is built on; without one it is the base image.
    pub parent: Option<String>,
    /// Its directory below the tree's root.
    pub place: PathBuf,
    /// What its files say.
    pub vars: Map,
}

/// The recipes of a tree, each after the one that it is built on.
#[derive(Debug)]
pub struct Recipes {
    recipes: Vec<Recipe>,
}

/// A tree that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The tree or a part of it cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be read or is not YAML.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A file that holds no variables.
    #[error("{}: a recipe is a map", .0.display())]
    NotAMap(PathBuf),
    /// Directories without end.
    #[error("{}: directories lie deeper in each other than anybody can mean it", .0.display())]
    TooDeep(PathBuf),
    /// Two directories for one image.
    #[error("{}: there is another recipe for {name}", path.display())]
    Twice {
        /// The image.
        name: String,
        /// The second directory.
        path: PathBuf,
    },
    /// An image without a recipe.
    #[error("Container image specified, but no config was provided. Image: {0}")]
    Unknown(String),
}

impl Recipes {
    /// The recipes below `root`.
    ///
    /// # Errors
    /// [`RecipeError`] where they cannot be read.
    pub fn read(root: &Path) -> Result<Self, RecipeError> {
        let mut recipes = Self { recipes: Vec::new() };
        recipes.add(root, Path::new(""), None, 0)?;
        let mut seen = HashSet::new();
        for recipe in &recipes.recipes {
            if !seen.insert(&recipe.name) {
                let (name, path) = (recipe.name.clone(), root.join(&recipe.place));
                return Err(RecipeError::Twice { name, path });
            }
        }
        Ok(recipes)
    }

    fn add(
        &mut self,
        root: &Path,
        place: &Path,
        parent: Option<&str>,
        depth: usize,
    ) -> Result<(), RecipeError> {
        // Joining nothing would leave a slash at the end.
        let directory: PathBuf = root.join(place).components().collect();
        if depth > MAX_DEPTH {
            return Err(RecipeError::TooDeep(directory));
        }
        let Listing { files, directories } = list(&directory)?;
        let name = place.file_name().map(|name| name.to_string_lossy().into_owned());
        let mut own = None;
        if let Some(name) = name.filter(|_| !files.is_empty()) {
            let vars = read_vars(&directory, &files)?;
            let (place, parent) = (place.to_owned(), parent.map(str::to_owned));
            self.recipes.push(Recipe { name: name.clone(), parent, place, vars });
            own = Some(name);
        }
        for below in directories {
            self.add(root, &place.join(below), own.as_deref().or(parent), depth + 1)?;
        }
        Ok(())
    }

    /// All images.
    pub fn names(&self) -> Vec<String> {
        self.recipes.iter().map(|recipe| recipe.name.clone()).collect()
    }

    /// The recipes of `wanted` and of what they are built on, less those in `excluded`.
    ///
    /// # Errors
    /// [`RecipeError::Unknown`] where one has no recipe.
    pub fn choose(
        &self,
        wanted: &[String],
        excluded: &[String],
    ) -> Result<Vec<&Recipe>, RecipeError> {
        let mut chosen = BTreeSet::new();
        for name in wanted.iter().filter(|name| !excluded.contains(name)) {
            let mut next = Some(name);
            while let Some(name) = next {
                let position = self.recipes.iter().position(|recipe| recipe.name == *name);
                let position = position.ok_or_else(|| RecipeError::Unknown(name.clone()))?;
                chosen.insert(position);
                next = self.recipes[position].parent.as_ref();
            }
        }
        let recipes = chosen.into_iter().map(|position| &self.recipes[position]);
        Ok(recipes.filter(|recipe| !excluded.contains(&recipe.name)).collect())
    }
}

/// What a directory holds, in the order of the names.
struct Listing {
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

fn list(directory: &Path) -> Result<Listing, RecipeError> {
    let read = |source| RecipeError::Read { path: directory.to_owned(), source };
    let mut listing = Listing { files: Vec::new(), directories: Vec::new() };
    for entry in fs::read_dir(directory).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = PathBuf::from(entry.file_name());
        let is_yaml = name.extension().is_some_and(|end| end == "yaml" || end == "yml");
        // Links to directories are not followed: they could lead in circles.
        if entry.file_type().map_err(read)?.is_dir() {
            listing.directories.push(name);
        } else if is_yaml {
            listing.files.push(name);
        }
    }
    listing.files.sort();
    listing.directories.sort();
    Ok(listing)
}

fn read_vars(directory: &Path, files: &[PathBuf]) -> Result<Map, RecipeError> {
    let mut vars = Map::default();
    for file in files {
        let path = directory.join(file);
        match document::read("recipe", &path)? {
            Value::Null => {}
            Value::Map(map) => {
                for (key, value) in map.iter() {
                    vars.insert(key, value.clone());
                }
            }
            _ => return Err(RecipeError::NotAMap(path)),
        }
    }
    Ok(vars)
}

/// The name of an image without namespace and tag, and without what tools put before it: one of
/// `distributions`, then the kind of install.
pub fn bare_name<'a>(imagename: &'a str, distributions: &[&str]) -> &'a str {
    let name = imagename.rsplit('/').next().unwrap_or_default();
    let name = name.split(':').next().unwrap_or_default();
    let without = |name: &'a str, prefixes: &[&str]| {
        prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
    };
    let name = without(name, distributions);
    without(name, &["binary-", "source-", "rdo-", "rhos-"])
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (place, text) in [
            ("base/base.yaml", "tcib_user: root\n"),
            ("base/os/a.yaml", "{tcib_user: a, tcib_cmd: x}"),
            ("base/os/b.yml", "tcib_user: b"),
            ("base/os/place/nova/nova.yaml", "# nothing\n"),
            ("base/os/notes.txt", "x"),
            ("ee/ee.yaml", "tcib_from: q.io/x:1"),
        ] {
            fs::create_dir_all(root.path().join(place).parent().unwrap()).unwrap();
            fs::write(root.path().join(place), text).unwrap();
        }
        root
    }

    #[test]
    fn each_image_is_built_on_that_of_the_directory_around_it() {
        let root = tree();
        let recipes = Recipes::read(root.path()).unwrap();
        assert_eq!(recipes.names(), ["base", "os", "nova", "ee"]);
        let parents: Vec<_> =
            recipes.recipes.iter().map(|recipe| recipe.parent.as_deref()).collect();
        assert_eq!(parents, [None, Some("base"), Some("os"), None]);
        assert_eq!(
            yaml::write(&recipes.recipes[1].vars.clone().into()),
            "tcib_cmd: x\ntcib_user: b\n"
        );
        let chosen = |wanted: &[&str], excluded: &[&str]| -> Vec<String> {
            let words =
                |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
            let chosen = recipes.choose(&words(wanted), &words(excluded)).unwrap();
            chosen.into_iter().map(|recipe| recipe.name.clone()).collect()
        };
        assert_eq!(chosen(&["nova"], &[]), ["base", "os", "nova"]);
        assert_eq!(chosen(&["ee", "os"], &["base"]), ["os", "ee"]);
    }

    #[test]
    fn trees_that_cannot_be_used_are_refused() {
        let root = tree();
        let recipes = Recipes::read(root.path()).unwrap();
        let unknown = recipes.choose(&["glance".to_owned()], &[]).unwrap_err();
        let words = "Container image specified, but no config was provided. Image: glance";
        assert_eq!(unknown.to_string(), words);
        fs::write(root.path().join("ee/z.yaml"), "[a]").unwrap();
        let error = Recipes::read(root.path()).unwrap_err().to_string();
        assert!(error.ends_with("ee/z.yaml: a recipe is a map"), "{error}");
        fs::remove_file(root.path().join("ee/z.yaml")).unwrap();
        fs::create_dir_all(root.path().join("ee/os")).unwrap();
        fs::write(root.path().join("ee/os/os.yaml"), "{}").unwrap();
        let error = Recipes::read(root.path()).unwrap_err().to_string();
        assert!(error.ends_with("ee/os: there is another recipe for os"), "{error}");
        let error = Recipes::read(&root.path().join("absent")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read ") && error.ends_with("absent"), "{error}");
    }

    #[test]
    fn names_lose_what_tools_put_before_them() {
        for (image, name) in [
            ("q.io/ns/openstack-nova-api:current", "nova-api"),
            ("h:5000/ns/rhel-source-keystone", "keystone"),
            ("unbound", "unbound"),
        ] {
            assert_eq!(bare_name(image, &["openstack-", "centos-", "rhel-", "ubi8-"]), name);
        }
    }
}
