//! Everything that can go wrong between a mounted image and its registry: reads wait up to their
//! deadline, then fail with EIO; nothing wrong is ever shown; and once the registry is well the
//! same files read right, by the same worker.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use undermount_tests::archive::{Member, noise};
use undermount_tests::http::{Fault, Request, Response};
use undermount_tests::image::Image;
use undermount_tests::node::{self, Node, PATIENCE};
use undermount_tests::origin::Origin;
use undermount_tests::process::eventually;
use undermount_tests::requirement::lacking;

/// More than is fetched at once when an image is mounted, in two chunks.
const SIZE: usize = 1_300_000;
/// How long a read waits where it waits in vain, in seconds, and where it does not.
const READ_TIMEOUT: &str = "4";
const READ_PATIENCE: &str = "100";
/// Nothing takes longer than this, on however loaded a machine.
const ENDLESS: Duration = Duration::from_secs(120);

type Distortion = fn(u32, Response) -> Response;

/// What goes wrong with the answers for one image: a function of how many of its blob requests
/// came before, and of the right answer.
struct Case {
    name: &'static str,
    distortion: Distortion,
}

fn case(name: &'static str, distortion: Distortion) -> Case {
    Case { name, distortion }
}

fn fault(response: Response, fault: Fault) -> Response {
    Response { fault: Some(fault), ..response }
}

fn status(status: u16, retry_after: Option<&str>) -> Response {
    let response = Response::new(status, r#"{"errors":[{"code":"UNAVAILABLE"}]}"#);
    match retry_after {
        Some(seconds) => response.header("Retry-After", seconds),
        None => response,
    }
}

fn redirect(target: &str) -> Response {
    Response::new(307, "").header("Location", target)
}

/// The right answer with another value of one header.
fn with_header(mut response: Response, name: &'static str, value: &str) -> Response {
    response.headers.retain(|(other, _)| *other != name);
    response.header(name, value)
}

/// What a patient reader gets over: the first answers are wrong, later ones right.
fn passing() -> Vec<Case> {
    vec![
        case("one reset at the first byte", |n, right| match n {
            0 => fault(right, Fault::Reset(0)),
            _ => right,
        }),
        case("resets all over the body", |n, right| match n {
            0..3 => fault(right, Fault::Reset([1, 70_000, 400_000][n as usize])),
            _ => right,
        }),
        case("short bodies", |n, right| match n {
            0..3 => fault(right, Fault::Short([0, 1, 300_000][n as usize])),
            _ => right,
        }),
        case("one wrong byte, once", |n, right| match n {
            0 => damaged(right),
            _ => right,
        }),
        case("busy for a second", |n, right| match n {
            0 => status(503, Some("1")),
            1 => status(429, Some("1")),
            _ => right,
        }),
        case("server errors", |n, right| match n {
            0 => status(500, None),
            1 => status(502, None),
            _ => right,
        }),
        case("the whole blob for a range", |_, right| right),
        case("a body in small pieces", |_, right| {
            fault(right, Fault::Trickle(100_000, Duration::from_millis(5)))
        }),
    ]
}

/// What no reader gets over.
fn lasting() -> Vec<Case> {
    vec![
        case("silence", |_, right| fault(right, Fault::Stall)),
        case("a byte now and then", |_, right| {
            fault(right, Fault::Trickle(1, Duration::from_millis(200)))
        }),
        case("a slow head", |_, right| fault(right, Fault::SlowHead(Duration::from_millis(200)))),
        case("a reset each time", |_, right| fault(right, Fault::Reset(10))),
        case("a short body each time", |_, right| fault(right, Fault::Short(5))),
        case("wrong bytes each time", |_, right| damaged(right)),
        case("no bytes", |_, right| Response { body: Default::default(), ..right }),
        case("another part", |_, right| {
            let body = right.body.slice(1..);
            Response { body, ..right }
        }),
        case("a wrong Content-Range", |_, right| {
            with_header(right, "Content-Range", "bytes 7-1000/2000000")
        }),
        case("a senseless Content-Range", |_, right| {
            with_header(right, "Content-Range", "lines 1-2")
        }),
        case("a body in gzip", |_, right| with_header(right, "Content-Encoding", "gzip")),
        case("other bytes without end", |_, right| {
            fault(Response { status: 200, body: vec![b'x'; 4096].into(), ..right }, Fault::Endless)
        }),
        case("gone", |_, _| status(404, None)),
        case("out of credentials", |_, _| {
            Response::new(401, "").header("WWW-Authenticate", r#"Basic realm="elsewhere""#)
        }),
        case("a token service that is down", |_, _| {
            let challenge = r#"Bearer realm="http://127.0.0.1:1/token",service="x""#;
            Response::new(401, "").header("WWW-Authenticate", challenge)
        }),
        case("forbidden", |_, _| status(403, None)),
        case("busy for an hour", |_, _| status(429, Some("3600"))),
        case("busy for ever", |_, _| status(503, Some("1"))),
        case("server errors each time", |_, _| status(500, None)),
        case("an unheard of status", |_, _| status(299, None)),
        case("redirected to a host that is down", |_, _| redirect("http://127.0.0.1:1/blob")),
        case("redirected to an unknown host", |_, _| redirect("http://nowhere.invalid/blob")),
        case("redirected in circles", |_, _| redirect("")),
        case("redirected nowhere", |_, _| Response::new(307, "")),
        case("a page of HTML", |_, _| {
            Response::new(200, "<html>sign in</html>").header("Content-Type", "text/html")
        }),
        case("416", |_, _| Response::new(416, "").header("Content-Range", "bytes */5")),
    ]
}

fn damaged(right: Response) -> Response {
    let mut body = right.body.to_vec();
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 0x10;
    }
    Response { body: body.into(), ..right }
}

/// A node with an image for each case mounted, of which nothing is here but the index.
struct Scene {
    origin: Origin,
    node: Node,
    worker: i32,
    files: Vec<(Case, PathBuf, Vec<u8>)>,
}

impl Scene {
    fn new(cases: Vec<Case>, read_timeout: &str) -> Self {
        let (origin, mut node) = (Origin::new(), Node::new());
        let files = cases
            .into_iter()
            .enumerate()
            .map(|(number, case)| {
                let content = noise(number as u64 + 1, SIZE);
                let repository = format!("faults/case{number:02}");
                let image = Image::of(&[&[Member::file("file", &content)]]);
                let reference = origin.add(&repository, image);
                origin.attach_right(&repository);
                let directory = node.directory(&repository);
                let flags = ["--read-timeout", read_timeout];
                node.try_mount_with(&flags, &reference, &directory).success();
                (case, directory.join("file"), content)
            })
            .collect();
        let worker = node.worker();
        Self { origin, node, worker, files }
    }

    /// From now on each image has its own troubles.
    fn begin(&self) {
        let distortions: Vec<Distortion> =
            self.files.iter().map(|(case, ..)| case.distortion).collect();
        let mut counts = BTreeMap::new();
        self.origin.distort(move |request, right| {
            let Some(number) = case_of(request) else { return right };
            let count = counts.entry(number).or_insert(0);
            *count += 1;
            distortions[number](*count - 1, right)
        });
    }

    /// Everything reads right, by the worker that was there from the beginning.
    fn assert_well(&self) {
        self.origin.behave();
        for (case, path, content) in &self.files {
            let mut read = None;
            // What has just failed is refused for a moment without another try.
            eventually(case.name, PATIENCE, || {
                read = fs::read(path).ok();
                read.is_some()
            });
            assert!(read.as_ref() == Some(content), "{}: wrong bytes afterwards", case.name);
        }
        assert_eq!(self.node.worker(), self.worker, "the worker was restarted");
    }
}

/// The number of the case whose blob is asked for.
fn case_of(request: &Request) -> Option<usize> {
    let (repository, _) = request.path.strip_prefix("/v2/faults/case")?.split_once("/blobs/")?;
    repository.parse().ok()
}

/// Reads a file whose bytes are not here; a read that ends without an error must be right.
fn read(name: &str, path: &Path, content: &[u8]) -> io::Result<()> {
    let begin = Instant::now();
    let outcome = fs::read(path);
    let (took, words) = (begin.elapsed(), outcome.as_ref().err().map(ToString::to_string));
    println!("{name}: {} after {took:.1?}", words.as_deref().unwrap_or("read"));
    assert!(took < ENDLESS, "{name}: took {took:?}");
    outcome.map(|read| assert!(read == content, "{name}: wrong bytes"))
}

#[test]
fn passing_troubles_are_not_noticed() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(passing(), READ_PATIENCE);
    scene.begin();
    for (case, path, content) in &scene.files {
        if case.name == "the whole blob for a range" {
            scene.origin.misbehave(|_| Some(Fault::WholeForRange));
        }
        read(case.name, path, content).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        scene.origin.misbehave(|_| None);
    }
    scene.assert_well();
}

#[test]
fn lasting_troubles_end_in_eio_and_not_in_wrong_bytes() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(lasting(), READ_TIMEOUT);
    scene.begin();
    thread::scope(|scope| {
        for (case, path, content) in &scene.files {
            scope.spawn(move || {
                let error = read(case.name, path, content).expect_err(case.name);
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{}: {error}", case.name);
            });
        }
    });
    scene.assert_well();
}

/// What a registry wanted for a moment must not be asked of the user for ever.
#[test]
fn regression_a_registry_that_stops_asking_for_credentials_is_readable_again() {
    if lacking(node::NEEDS) {
        return;
    }
    let challenges = ["out of credentials", "a token service that is down"];
    for name in challenges {
        let cases = lasting().into_iter().filter(|case| case.name == name).collect();
        let scene = Scene::new(cases, READ_TIMEOUT);
        scene.begin();
        let (_, path, content) = &scene.files[0];
        read(name, path, content).unwrap_err();
        scene.assert_well();
    }
}

#[test]
fn a_registry_that_is_down_and_comes_back() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(vec![case("down", |_, right| right)], READ_TIMEOUT);
    let (_, path, content) = &scene.files[0];
    scene.origin.down();
    let error = read("down", path, content).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // Back before the next read gives up.
    thread::scope(|scope| {
        let reader = scope.spawn(|| read("back in time", path, content));
        thread::sleep(Duration::from_millis(300));
        scene.origin.up();
        // On a loaded machine it may have been too late for this one.
        drop(reader.join().unwrap());
    });
    scene.assert_well();
}
