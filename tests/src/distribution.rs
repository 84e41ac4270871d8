//! A client of the distribution API that does exactly what a test says: one request per
//! connection, headers as given, bodies cut off on purpose.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::Value;
use sha2::{Digest as _, Sha256, Sha512};

use crate::process::SOON;

/// The API of a registry at `host:port`.
#[derive(Debug, Clone)]
pub struct Api(pub String);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    /// The bytes after the headers.
    pub body: Vec<u8>,
}

impl Api {
    /// Sends a request with a body of the right length and reads the answer.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let answer = self.try_send(method, path, headers, body);
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// [`send`](Self::send) to a registry that may be killed meanwhile.
    ///
    /// # Errors
    /// Where no whole answer comes.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let length = body.len().to_string();
        let mut headers = headers.to_vec();
        headers.push(("Content-Length", &length));
        let mut stream = self.try_open(method, path, &headers)?;
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(body);
        Answer::read(stream)
    }

    /// Sends a request without a body.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        Answer::read(self.open("GET", path, &[])).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Asks for the headers only.
    #[track_caller]
    pub fn head(&self, path: &str) -> Answer {
        Answer::read(self.open("HEAD", path, &[])).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Sends the head of a request and leaves the rest to the caller.
    #[track_caller]
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> TcpStream {
        self.try_open(method, path, headers).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn try_open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.0)?;
        // A stalled server fails the test.
        stream.set_read_timeout(Some(SOON))?;
        let host = &self.0;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        Ok(stream)
    }

    /// Begins an upload; gives the path where it goes on.
    #[track_caller]
    pub fn begin(&self, repository: &str) -> String {
        let answer = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
        answer.expect(202).location().to_owned()
    }

    /// Sends `blob` in two chunks; gives the location where the upload goes on.
    #[track_caller]
    pub fn send_chunks(&self, repository: &str, blob: &[u8]) -> String {
        let mut location = self.begin(repository);
        let middle = blob.len() / 2;
        for (start, end) in [(0, middle), (middle, blob.len())].into_iter().filter(|(a, b)| a < b) {
            let header = range(start, end);
            let headers = [("Content-Range", header.as_str())];
            let answer = self.send("PATCH", &location, &headers, &blob[start..end]);
            assert_eq!(answer.expect(202).header("range"), Some(range(0, end).as_str()));
            location = answer.location().to_owned();
        }
        location
    }

    /// Pushes a blob in two requests; gives its digest.
    #[track_caller]
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let location = self.begin(repository);
        let joint = if location.contains('?') { '&' } else { '?' };
        self.send("PUT", &format!("{location}{joint}digest={digest}"), &[], bytes).expect(201);
        digest
    }

    /// Pushes a manifest; gives its digest.
    #[track_caller]
    pub fn push_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string();
        let path = format!("/v2/{repository}/manifests/{reference}");
        let media_type = manifest["mediaType"].as_str().unwrap_or_default();
        let answer = self.send("PUT", &path, &[("Content-Type", media_type)], bytes.as_bytes());
        answer.expect(201);
        sha256(bytes.as_bytes())
    }
}

impl Answer {
    /// Reads the answer to what was sent over `stream`, to its end.
    ///
    /// # Errors
    /// Where no whole answer comes.
    pub fn read(mut stream: TcpStream) -> io::Result<Self> {
        let mut bytes = Vec::new();
        // A reset after the answer is the end of it as well.
        if let Err(error) = stream.read_to_end(&mut bytes)
            && bytes.is_empty()
        {
            return Err(error);
        }
        let _ = stream.shutdown(Shutdown::Both);
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Some(Self { status, headers, body: bytes[end + 4..].to_vec() })
    }

    /// Itself, where it has this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}\n{:?}", self.headers);
        self
    }

    /// The code of the first error, where the status is as expected.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        self.expect(status).json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Where the answer says to go on.
    #[track_caller]
    pub fn location(&self) -> &str {
        self.header("location").expect("the answer has a location")
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// A way to push a blob to a repository, given the API, the digest and the bytes.
pub type Push = fn(&Api, &str, &str, &[u8]) -> Answer;

/// Every way there is, each up to the answer of its last request.
pub const PUSHES: [(&str, Push); 5] = [
    ("post", |api, repository, digest, blob| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        api.send("POST", &path, &[], blob)
    }),
    ("post and put", |api, repository, digest, blob| {
        api.send("PUT", &format!("{}?digest={digest}", api.begin(repository)), &[], blob)
    }),
    ("stream", |api, repository, digest, blob| {
        let answer = api.send("PATCH", &api.begin(repository), &[], blob);
        let location = answer.expect(202).location();
        api.send("PUT", &format!("{location}?digest={digest}"), &[], b"")
    }),
    ("chunks", |api, repository, digest, blob| {
        let location = api.send_chunks(repository, blob);
        api.send("PUT", &format!("{location}?digest={digest}"), &[], b"")
    }),
    ("chunks, the last by put", |api, repository, digest, blob| {
        let (front, last) = blob.split_at(blob.len() * 2 / 3);
        let path = format!("{}?digest={digest}", api.send_chunks(repository, front));
        if last.is_empty() {
            return api.send("PUT", &path, &[], b"");
        }
        api.send("PUT", &path, &[("Content-Range", &range(front.len(), blob.len()))], last)
    }),
];

/// The bytes from `start` up to `end` as a Content-Range.
pub fn range(start: usize, end: usize) -> String {
    format!("{start}-{}", end - 1)
}

/// The canonical digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// The other digest of `bytes`.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
