//! A real Apache that serves an image-serve tree as TripleO sets it up, on a free loopback port.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::port;
use crate::process::{Running, SOON, eventually, program};
use crate::requirement::Need;

/// What [`Apache`] needs from the machine.
pub const NEEDS: &[Need] = &[Need::Program("apache2")];

/// Where Debian has its modules.
const MODULES: &str = "/usr/lib/apache2/modules";
/// Those that the rules below need; what is built in is left out.
const WANTED: [&str; 9] =
    ["mpm_event", "authz_core", "alias", "dir", "env", "headers", "mime", "negotiation", "rewrite"];

/// The virtual host of TripleO's role `tripleo_image_serve`, which the tree's layout is made
/// for: a tag is a type map, a blob without `.gz` is found by MultiViews, headers come from
/// `.htaccess` files and from the URL.
const VHOST: &str = r#"
DocumentRoot "ROOT"
<Directory "ROOT">
    Options +MultiViews +FollowSymLinks
    AllowOverride FileInfo
    Require all granted
</Directory>
RedirectMatch "^/$" "/v2"
DirectoryIndex index.json
AddHandler type-map .type-map
AddType application/x-gzip .gz
Header set Docker-Distribution-Api-Version "registry/2.0"
RewriteEngine on
RewriteCond %{REQUEST_URI} ^/v2/.*/manifests/(.*)$
RewriteCond %1 !^sha256:
RewriteRule ^(.*)$ $1.type-map [PT]
RewriteRule ^/v2/.*/blobs/(sha256:[0-9a-f]+)$ - [E=blob_digest:$1]
<LocationMatch "^/v2/.*/blobs/.*$">
    Header set Cache-Control "max-age=31536000"
    Header set Content-Type "application/octet-stream"
    Header set Docker-Content-Digest "%{blob_digest}e"
    Header set ETag "%{blob_digest}e"
</LocationMatch>
"#;

/// The server; it stops when dropped.
pub struct Apache {
    _running: Running,
    address: String,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

impl Apache {
    /// Serves the tree at `root`, which is made with what the installation puts there.
    pub fn serve(root: &Path) -> Self {
        fs::create_dir_all(root.join("v2")).unwrap();
        fs::write(root.join("v2/index.json"), "{}").unwrap();
        // Apache's workers are another user.
        for directory in root.ancestors().take_while(|path| path.starts_with(std::env::temp_dir()))
        {
            if directory != std::env::temp_dir() {
                fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let port = port::unused().port();
        let log = directory.path().join("access");
        let config = directory.path().join("apache.conf");
        fs::write(&config, configuration(root, directory.path(), port)).unwrap();
        let mut command = program("apache2");
        let running = Running::start(command.arg("-D").arg("FOREGROUND").arg("-f").arg(&config));
        let address = format!("127.0.0.1:{port}");
        eventually("Apache answers", SOON, || std::net::TcpStream::connect(&address).is_ok());
        Self { _running: running, address, log, _directory: directory }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What was asked so far: method, path, status and bytes of the body, one line each.
    pub fn requests(&self) -> Vec<String> {
        fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

fn configuration(root: &Path, directory: &Path, port: u16) -> String {
    let mut lines = vec![
        format!("ServerRoot \"{}\"", directory.display()),
        format!("PidFile \"{}/pid\"", directory.display()),
        format!("ErrorLog \"{}/error\"", directory.display()),
        format!("Mutex file:{} default", directory.display()),
        format!("Listen 127.0.0.1:{port}"),
        "ServerName localhost".to_owned(),
        "TypesConfig /dev/null".to_owned(),
        "LogFormat \"%m %U %>s %B\" short".to_owned(),
        format!("CustomLog \"{}/access\" short", directory.display()),
    ];
    if nix::unistd::geteuid().is_root() {
        lines.push("User nobody\nGroup nogroup".to_owned());
    }
    let modules =
        WANTED.iter().map(|name| format!("LoadModule {name}_module {MODULES}/mod_{name}.so"));
    let vhost = VHOST.replace("ROOT", &root.display().to_string());
    modules.chain(lines).chain([vhost]).collect::<Vec<_>>().join("\n")
}
