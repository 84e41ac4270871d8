//! `modify_role` with the real `ansible-playbook` and `buildah`: a role that adds a file, and what
//! nodes then pull.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;
use undermount_tests::archive::Member;
use undermount_tests::image::{Image, Layer};
use undermount_tests::process::{Outcome, call, program, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

/// Ansible takes seconds to begin, on a busy machine many.
const DEADLINE: Duration = Duration::from_secs(300);
const TEMPLATE: &str = "container_images_template:\n\
    - {imagename: '{{namespace}}/nova:{{tag}}', image_source: tripleo, params: [NovaImage]}\n\
    - {imagename: '{{namespace}}/keystone:{{tag}}', image_source: kolla, params: [KeystoneImage]}\n";
/// Adds a file as TripleO's role does, with the tool and the names that it is given.
const ROLE: &str = "\
- name: change the image
  ansible.builtin.shell: |
    set -e
    container=$({{ container_build_tool }} from --pull-never {{ source_image }})
    printf '%s' '{{ text }}' > {{ modify_dir_path }}/motd
    {{ container_build_tool }} copy --quiet $container {{ modify_dir_path }}/motd /etc/motd
    {{ container_build_tool }} commit --quiet $container {{ target_image }}{{ modified_append_tag }}
    {{ container_build_tool }} rm $container
";
/// What `hotfix` runs: TripleO's role by its name, with a task file of its own.
const HOTFIX: &str = "\
- name: change the image
  ansible.builtin.shell: |
    set -e
    container=$({{ container_build_tool }} from --tls-verify=false {{ source_image }})
    {{ container_build_tool }} copy --quiet $container {{ rpms_path }}/{{ tasks_from }} /etc/fix
    {{ container_build_tool }} commit --quiet $container {{ source_image }}{{ modified_append_tag }}
    {{ container_build_tool }} rm $container
";

/// The same with a text that nobody may see: Ansible is told to say nothing of it.
const SECRET_ROLE: &str = "\
- name: write the secret
  ansible.builtin.copy: {content: '{{ token }}', dest: '{{ modify_dir_path }}/token', mode: '0600'}
  no_log: true
- name: change the image
  ansible.builtin.shell: |
    set -e
    container=$({{ container_build_tool }} from --pull-never {{ source_image }})
    {{ container_build_tool }} copy --quiet $container {{ modify_dir_path }}/token /etc/token
    {{ container_build_tool }} commit --quiet $container {{ target_image }}{{ modified_append_tag }}
    {{ container_build_tool }} rm $container
";
/// Runs the real program after it wrote down the arguments and environments of itself and of the
/// processes above it, up to the test.
const SHIM: &str = "#!/bin/sh
p=$$
while [ \"$p\" -gt 1 ] && [ \"$p\" != TEST ]; do
  cat /proc/$p/cmdline /proc/$p/environ >> RECORD
  p=$(sed 's/.*) [A-Zt] \\([0-9]*\\) .*/\\1/' /proc/$p/stat)
done
exec PROGRAM \"$@\"
";

/// A host with an image store, roles and a registry of its own, with two images in it.
struct Host {
    directory: TempDir,
    registry: Registry,
}

impl Host {
    /// Nothing where programs are missing.
    fn new() -> Option<Self> {
        let programs = ["ansible-playbook", "buildah", "skopeo"].map(Need::Program);
        if lacking(&[Need::Root]) || lacking(&programs) {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let registry =
            Registry::undermount_with(&directory.path().join("registry"), &["--index", "off"]);
        for name in ["nova", "keystone"] {
            let layer = Layer::of(&[Member::dir("etc"), Member::file("etc/name", name)]);
            let image = Image::with_labels(vec![layer], &[("rdo_version", "v1"), (name, "yes")]);
            for tag in ["t", "v1"] {
                registry.push_image(&image, &format!("ns/{name}:{tag}"));
            }
        }
        let host = Self { directory, registry };
        host.write("template.j2", TEMPLATE);
        host.write("roles/add-file/tasks/main.yml", ROLE);
        host.write("roles/tripleo-modify-image/tasks/main.yml", HOTFIX);
        host.write("rpms/rpm_install.yml", "fixed");
        let store = host.path("store");
        host.write(
            "storage.conf",
            &format!(
                "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}/graph\"\nrunroot = \"{}/run\"\n",
                store.display(),
                store.display()
            ),
        );
        host.write("tmp/.keep", "");
        Some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The same host when its registry knows users alone.
    fn for_one_user(self, name: &str, password: &str) -> Self {
        let Self { directory, registry } = self;
        drop(registry);
        let users = directory.path().join("users");
        fs::write(&users, call("htpasswd", &["-nbBC", "5", name, password])).unwrap();
        let flags = ["--index", "off", "--pull", "users", "--htpasswd", users.to_str().unwrap()];
        let registry = Registry::undermount_with(&directory.path().join("registry"), &flags);
        Self { directory, registry }
    }

    /// Puts a shim before each of `programs`; gives the search path that finds them.
    fn watch(&self, programs: &[&str]) -> String {
        for name in programs {
            let real = call("sh", &["-c", &format!("command -v {name}")]);
            let text = SHIM
                .replace("TEST", &std::process::id().to_string())
                .replace("RECORD", self.path("record").to_str().unwrap())
                .replace("PROGRAM", real.trim());
            self.write(&format!("shims/{name}"), &text);
            let runnable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(self.path(&format!("shims/{name}")), runnable).unwrap();
        }
        format!("{}:{}", self.path("shims").display(), std::env::var("PATH").unwrap())
    }

    /// An environment whose only entry copies within the registry and has `more` keys.
    fn entry(&self, more: &str) {
        let host = self.registry.address();
        self.write(
            "prepare.yaml",
            &format!(
                "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: {host}/to\n    \
                 set: {{namespace: {host}/ns, tag: t}}\n{more}"
            ),
        );
    }

    /// What every program gets: a store that is not the machine's.
    fn private<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path())
            .env("XDG_RUNTIME_DIR", self.path("tmp"))
            .env("TMPDIR", self.path("tmp"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env("STORAGE_DRIVER", "vfs")
            .env("BUILDAH_ISOLATION", "chroot")
            .env("ANSIBLE_ROLES_PATH", self.path("roles"))
    }

    fn call(&self, line: &str) -> Outcome {
        let mut command = undermount();
        run(self.private(&mut command).args(line.split_whitespace()), DEADLINE)
    }

    fn prepare(&self, more: &str) -> Outcome {
        self.call(&format!(
            "prepare -e prepare.yaml --template-file template.j2 --output-env-file env.yaml {more}"
        ))
    }

    fn environment(&self) -> String {
        fs::read_to_string(self.path("env.yaml")).unwrap()
    }

    /// The content of `file` in the image `name` of the registry.
    fn file(&self, name: &str, file: &str) -> Option<String> {
        let layout = tempfile::tempdir().unwrap();
        let image =
            self.registry.pull(&format!("{}/{name}", self.registry.address()), layout.path());
        image.layers().iter().rev().find_map(|(digest, _)| {
            let blob = &image.blobs[digest];
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(blob.as_ref()));
            archive.entries().unwrap().find_map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                if entry.path().unwrap().as_os_str() != file {
                    return None;
                }
                entry.read_to_string(&mut text).unwrap();
                Some(text)
            })
        })
    }

    /// The local images that buildah knows.
    fn local_images(&self) -> String {
        let mut command = program("buildah");
        self.private(&mut command).args(["images", "--format", "{{.Name}}:{{.Tag}}"]);
        run(&mut command, DEADLINE).success().stdout
    }

    /// Nothing but what was put there.
    #[track_caller]
    fn has_no_leftovers(&self) {
        let left: Vec<_> = fs::read_dir(self.path("tmp"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("undermount-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_role_changes_images_and_nodes_pull_the_result() {
    let Some(host) = Host::new() else { return };
    host.entry(
        "    modify_role: add-file\n    modify_append_tag: -hotfix\n    \
         modify_vars: {text: hello}\n    modify_only_with_source: [tripleo]\n",
    );
    host.prepare("--cleanup partial").success();
    let to = format!("{}/to/ns", host.registry.address());
    let environment = host.environment();
    assert!(environment.contains(&format!("\n  NovaImage: {to}/nova:t-hotfix\n")), "{environment}");
    assert!(
        environment.contains(&format!("\n  KeystoneImage: {to}/keystone:t\n")),
        "{environment}"
    );
    assert_eq!(host.file("to/ns/nova:t-hotfix", "etc/motd").as_deref(), Some("hello"));
    assert_eq!(host.file("to/ns/nova:t-hotfix", "etc/name").as_deref(), Some("nova"));
    assert_eq!(host.file("to/ns/nova:t", "etc/motd"), None, "the original is as it was");
    let local = host.local_images();
    assert!(local.contains("nova:t-hotfix") && !local.contains("nova:t\n"), "{local}");
    host.has_no_leftovers();

    // What was changed already is not changed again.
    host.write("roles/add-file/tasks/main.yml", "- ansible.builtin.fail: {msg: never}\n");
    host.prepare("").success();
}

#[test]
fn secrets_are_in_no_list_of_processes_and_in_no_log() {
    let Some(host) = Host::new() else { return };
    if lacking(&[Need::Program("htpasswd")]) {
        return;
    }
    let host = host.for_one_user("alice", "hush-hush");
    let path = host.watch(&["ansible-playbook", "buildah", "skopeo"]);
    host.write("roles/add-secret/tasks/main.yml", SECRET_ROLE);
    let address = host.registry.address().to_owned();
    host.entry(&format!(
        "    modify_role: add-secret\n    modify_append_tag: -s\n    \
         modify_vars: {{token: between-us}}\n    modify_only_with_source: [tripleo]\n  \
         ContainerImageRegistryCredentials: {{'{address}': {{alice: hush-hush}}}}\n"
    ));
    let mut command = undermount();
    host.private(&mut command).env("PATH", path).args([
        "prepare",
        "-e",
        "prepare.yaml",
        "--template-file",
        "template.j2",
        "--log",
        "trace",
        "--output-env-file",
        "env.yaml",
        "--output-images-file",
        "images.yaml",
    ]);
    let outcome = run(&mut command, DEADLINE).success();
    let record = String::from_utf8_lossy(&fs::read(host.path("record")).unwrap()).into_owned();
    for expected in ["buildah\0pull\0", "--authfile\0", "playbook.yaml\0", "skopeo\0"] {
        assert!(record.contains(expected), "{expected} was seen: {record}");
    }
    let login = STANDARD.encode("alice:hush-hush");
    for (what, text) in [
        ("processes", &record),
        ("log", &outcome.stderr),
        ("stdout", &outcome.stdout),
        ("environment", &host.environment()),
    ] {
        for secret in ["hush-hush", login.as_str()] {
            assert!(!text.contains(secret), "{secret} in {what}");
        }
    }
    // The upload list has the variables, as in the original; nothing else does.
    for (what, text) in [("processes", &record), ("log", &outcome.stderr)] {
        assert!(!text.contains("between-us"), "the variable in {what}");
    }
    host.has_no_leftovers();
}

#[test]
fn labels_of_the_discovered_tag_choose_and_the_default_suffix_is_a_time() {
    let Some(host) = Host::new() else { return };
    host.entry(
        "    tag_from_label: rdo_version\n    modify_role: add-file\n    \
         modify_vars: {text: hello}\n    modify_only_with_labels: [rdo_version, keystone]\n",
    );
    host.prepare("").success();
    let environment = host.environment();
    let line = environment.lines().find(|line| line.contains("KeystoneImage")).unwrap();
    let (_, tag) = line.split_once("/keystone:").unwrap();
    let stamp = tag.strip_prefix("v1-modified-").unwrap();
    assert!(stamp.len() == 14 && stamp.bytes().all(|byte| byte.is_ascii_digit()), "{line}");
    assert!(environment.contains("/nova:v1\n"), "{environment}");
    assert_eq!(host.file(&format!("to/ns/keystone:{tag}"), "etc/motd").as_deref(), Some("hello"));
    assert_eq!(host.local_images(), "", "both copies are removed");
}

#[test]
fn a_role_that_fails_is_told_with_the_end_of_its_words() {
    let Some(host) = Host::new() else { return };
    host.write("roles/add-file/tasks/main.yml", "- ansible.builtin.fail: {msg: no such package}\n");
    host.entry("    modify_role: add-file\n    modify_only_with_source: [tripleo]\n");
    let outcome = host.prepare("");
    let words = outcome.refusal();
    let to = format!("{}/to/ns", host.registry.address());
    assert!(words.contains("1 of 3 images could not be copied; the others were"), "{words}");
    assert!(words.contains(&format!("Modifying image {to}/nova:t-modified-")), "{words}");
    assert!(words.contains("`ansible-playbook` failed"), "{words}");
    assert!(words.contains("no such package"), "{words}");
    assert!(!host.path("env.yaml").exists());
    assert!(host.file("to/ns/keystone:t", "etc/name").is_some(), "the others are there");
    host.has_no_leftovers();

    host.entry("    modify_role: absent-role\n    modify_only_with_source: [tripleo]\n");
    let outcome = host.prepare("");
    assert!(outcome.refusal().contains("the role 'absent-role' was not found"));
}

#[test]
fn regression_a_destination_that_cannot_be_asked_stops_its_own_images_alone() {
    let Some(host) = Host::new() else { return };
    let entry = |to: &str, name: &str| {
        let from = host.registry.address();
        format!(
            "  - push_destination: {to}\n    set: {{namespace: {from}/ns, tag: t}}\n    \
             includes: [{name}]\n    modify_role: add-file\n    modify_append_tag: -m\n    \
             modify_vars: {{text: hello}}\n"
        )
    };
    let there = format!("{}/to", host.registry.address());
    let entries = [entry(&there, "keystone"), entry("127.0.0.1:1/to", "nova")].concat();
    host.write(
        "prepare.yaml",
        &format!("parameter_defaults:\n  ContainerImagePrepare:\n{entries}"),
    );
    let outcome = host.prepare("");
    let words = outcome.refusal();
    assert!(words.contains("127.0.0.1:1/to/ns/nova:t-m"), "{words}");
    assert!(words.contains("2 of 4 images could not be copied; the others were"), "{words}");
    assert!(host.file("to/ns/keystone:t-m", "etc/name").is_some(), "{words}");
    assert!(!host.path("env.yaml").exists());
}

#[test]
fn what_roles_cannot_change_is_refused_before_anything_is_copied() {
    let Some(host) = Host::new() else { return };
    for (more, words) in [
        ("modify_role: r\n    multi_arch: true\n", "Cannot run a modify role on multi-arch image"),
        ("modify_role: r\n    modify_vars: [a]\n", "must be a map, this is a list"),
    ] {
        host.entry(&format!("    {more}"));
        let outcome = host.prepare("");
        assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
    }
    let copied = host.registry.address().to_owned() + "/v2/to/ns/nova/tags/list";
    assert_eq!(undermount_tests::registry::get(&format!("http://{copied}")).0, 404);
}

#[test]
fn a_hotfix_stays_on_the_host_until_it_is_pushed() {
    let Some(host) = Host::new() else { return };
    let address = host.registry.address().to_owned();
    let image = format!("{address}/ns/nova:t");
    host.call(&format!(
        "tripleo container image hotfix --image {image} --rpms-path {} --tag fix",
        host.path("rpms").display()
    ))
    .success();
    assert!(host.local_images().contains("/ns/nova:t-fix"), "{}", host.local_images());
    host.call(&format!(
        "tripleo container image push --local --registry-url {address} {image}-fix"
    ))
    .success();
    assert_eq!(host.file("ns/nova:t-fix", "etc/fix").as_deref(), Some("fixed"));
    host.has_no_leftovers();
    let outcome = host.call(&format!(
        "tripleo container image push --local --registry-url {address} h.invalid/ns/none:t"
    ));
    assert!(
        outcome.refusal().contains("containers-storage:h.invalid/ns/none:t"),
        "{}",
        outcome.stderr
    );
}

/// A list with one image of TripleO's and one of another project.
const LIST: &str = "container_images:\n\
    - {imagename: 'q.example/ns/openstack-app:t', image_source: tripleo}\n\
    - {imagename: 'q.example/ns/openstack-ceph:t', image_source: ceph}\n";

#[test]
fn images_are_built_from_recipes_and_what_they_need_first() {
    let Some(host) = Host::new() else { return };
    let address = host.registry.address().to_owned();
    host.write("recipes/list.yaml", LIST);
    host.write("recipes/tcib/base/base.yaml", "tcib_envs: {LANG: C}\ntcib_user: root\n");
    let app = format!(
        "tcib_gather_files: ['{}']\ntcib_copies: ['{{{{ tcib_file }}}} /etc/greeting']\n\
         tcib_actions:\n- env: 'RELEASE={{{{ tcib_release }}}}'\ntcib_cmd: run it\n",
        host.path("greeting").display()
    );
    host.write("recipes/tcib/base/app/app.yaml", &app);
    host.write("recipes/tcib/base/other/other.yaml", "tcib_cmd: never\n");
    host.write("greeting", "hello");
    let file = host.path("greeting").display().to_string();
    let flags = format!(
        "--config-path recipes --config-file list.yaml --work-dir builds --registry {address} --namespace built \
         --tag t1 --base {address}/ns/nova:t --tcib-extras tcib_file={file} --label who=%(name)s"
    );
    host.call(&format!("tripleo container image build {flags} --skip-build")).success();
    let work = fs::read_dir(host.path("builds")).unwrap().next().unwrap().unwrap().path();
    let dockerfile = fs::read_to_string(work.join("base/app/Dockerfile")).unwrap();
    for line in [
        format!("FROM {address}/built/openstack-base:t1\n"),
        "LABEL who=\"app\"\n".to_owned(),
        format!("COPY {file} /etc/greeting\n"),
        "ENV RELEASE=9\n".to_owned(),
        "CMD [\"run\", \"it\"]\n".to_owned(),
    ] {
        assert!(dockerfile.contains(&line), "{line}: {dockerfile}");
    }
    assert!(!work.join("base/other").exists(), "nobody asked for it");

    host.call(&format!("tripleo container image build {flags} --push")).success();
    assert_eq!(host.file("built/openstack-app:t1", "etc/greeting").as_deref(), Some("hello"));
    assert_eq!(host.file("built/openstack-app:t1", "etc/name").as_deref(), Some("nova"));

    // What cannot be built takes along what is built on it, and nothing else.
    host.write("recipes/tcib/base/app/app.yaml", "tcib_copies: [absent /x]\n");
    host.write("recipes/tcib/base/app/upper/upper.yaml", "tcib_cmd: x\n");
    let all = flags.replace("list.yaml", "absent.yaml");
    let outcome = host.call(&format!("tripleo container image build {all}"));
    let words = outcome.refusal();
    assert!(words.contains("2 of 4 images were not built:\n  app: `buildah` failed"), "{words}");
    assert!(words.contains("\n  upper: app was not built"), "{words}");
    let local = host.local_images();
    assert!(local.contains("openstack-other:t1"), "{local}");
}

#[test]
fn recipes_that_do_not_do_are_refused() {
    let Some(host) = Host::new() else { return };
    host.write("recipes/tcib/base/base.yaml", "tcib_user: root\n");
    host.write("recipes/list.yaml", LIST);
    host.write("recipes/other.yaml", "images: []\n");
    for (flags, words) in [
        ("--config-path absent", "Configuration directory absent/tcib was not found."),
        ("", "Container image specified, but no config was provided. Image: app"),
        ("--config-file other.yaml", "recipes/other.yaml has no list `container_images`"),
        ("--tcib-extras a=b", "Wrong key format a. We expect \"tcib_\" prefix, such as tcib_a"),
        ("--tcib-extras tcib_a", "--tcib-extras tcib_a: use KEY=VALUE"),
        ("--rhel-modules mariadb", "must be a comma separated list of <module>:<version>"),
        ("--rhel-modules php:1", "php is not part of supported modules container-tools, mariadb"),
        ("--label a", "--label a: use KEY=VALUE"),
    ] {
        let path = if flags.contains("--config-path") { "" } else { "--config-path recipes" };
        let list = if flags.contains("--config-file") { "" } else { "--config-file list.yaml" };
        let outcome = host.call(&format!("tripleo container image build {path} {list} {flags}"));
        assert!(outcome.refusal().contains(words), "{flags}: {}", outcome.stderr);
    }
}
