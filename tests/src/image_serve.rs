//! The tree of files that TripleO's Apache serves, as the original writes it.

use std::fs;
use std::path::Path;

use crate::image::{Image, MANIFEST};

/// Writes an image into the tree below `root`. The list of tags is left half-written, as a
/// reader may find it at any time.
pub fn write(root: &Path, image: &Image, repository: &str, tag: &str) {
    let base = root.join("v2").join(repository);
    let put = |path: String, bytes: &[u8]| {
        let path = base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let layers = image.layers();
    for (digest, blob) in &image.blobs {
        let is_layer = layers.iter().any(|(layer, _)| layer == digest);
        put(format!("blobs/{digest}{}", if is_layer { ".gz" } else { "" }), blob);
    }
    let digest = image.digest();
    put(format!("manifests/{digest}/index.json"), &image.manifest);
    let headers = format!("Header set Content-Type \"{MANIFEST}\"\n");
    put(format!("manifests/{digest}/.htaccess"), headers.as_bytes());
    let map = format!("URI: {tag}\n\nContent-Type: {MANIFEST}\nURI: {digest}/index.json\n\n");
    put(format!("manifests/{tag}.type-map"), map.as_bytes());
    put("tags/list".to_owned(), b"half writ");
}
