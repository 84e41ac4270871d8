//! What the undercloud's Apache does with an image-serve tree, as far as the cases ask: reading,
//! and 405 for everything else.

use std::fs;
use std::path::{Path, PathBuf};

use crate::http::{Request, Response, Server};

/// Serves `root`, which is made with what the undercloud's installation puts there.
pub fn start(root: &Path) -> Server {
    fs::create_dir_all(root.join("v2")).unwrap();
    fs::write(root.join("v2/index.json"), "{}").unwrap();
    let root = root.to_owned();
    Server::start(move |request| answer(&root, request))
}

fn answer(root: &Path, request: &Request) -> Response {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Response::new(405, "");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    assert!(!path.contains(".."), "{path}");
    let Some(file) = file_of(&root.join(path.trim_matches('/')), request) else {
        return Response::new(404, "");
    };
    let mut response = Response::new(200, fs::read(&file).unwrap());
    let headers = fs::read_to_string(file.with_file_name(".htaccess")).unwrap_or_default();
    for line in headers.lines().filter_map(|line| line.strip_prefix("Header set ")) {
        let (name, value) = line.split_once(' ').expect("a name and a value");
        response = match name {
            "Content-Type" => response.header("Content-Type", value.trim_matches('"')),
            "Docker-Content-Digest" => {
                response.header("Docker-Content-Digest", value.trim_matches('"'))
            }
            _ => response,
        };
    }
    response.header("Docker-Distribution-Api-Version", "registry/2.0")
}

/// The file that stands for `path`: a tag's variant, an index, a blob under its other name.
fn file_of(path: &Path, request: &Request) -> Option<PathBuf> {
    if let Ok(map) = fs::read_to_string(with(path, ".type-map")) {
        let accept = request.header("accept").unwrap_or("*/*");
        return Some(path.with_file_name(variant(&map, accept)?));
    }
    let candidates = [path.to_owned(), path.join("index.json"), with(path, ".gz")];
    candidates.into_iter().find(|file| file.is_file())
}

/// The first variant that the client asks for, else the first.
fn variant<'a>(map: &'a str, accept: &str) -> Option<&'a str> {
    let variants: Vec<(&str, &str)> = map
        .split("\n\n")
        .filter_map(|record| {
            let field = |name| record.lines().find_map(|line| line.strip_prefix(name));
            Some((field("Content-Type: ")?, field("URI: ")?))
        })
        .collect();
    let wanted = variants.iter().find(|(media_type, _)| accept.contains(media_type));
    wanted.or(variants.first()).map(|(_, uri)| *uri)
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
