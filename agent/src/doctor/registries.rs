//! Registries: whether they answer, and whether parts of blobs reach this host through whatever
//! lies between: a proxy that ignores Range makes every read as dear as a whole layer.

use std::time::{Duration, Instant};

use super::{Finding, Patient};
use crate::image::{Platform, Reference};
use crate::registry::client::{Client, Fault, RegistryError};

/// How long all questions to one registry may take.
const PATIENCE: Duration = Duration::from_secs(20);
const CHECK: &str = "registry";
const RANGE: &str = "range";

pub(super) async fn examine(patient: &Patient, client: &Client) -> Vec<Finding> {
    let mut findings = Vec::new();
    for host in &patient.registries {
        let client = client.until(Instant::now() + PATIENCE);
        findings.push(judge_answer(host, client.ping(host).await));
    }
    for image in &patient.images {
        let client = client.until(Instant::now() + PATIENCE);
        findings.push(judge_range(image, range(&client, image).await));
    }
    findings
}

fn judge_answer(host: &str, answer: Result<(), RegistryError>) -> Finding {
    match answer {
        Ok(()) => Finding::ok(CHECK, format!("{host} answers")),
        Err(error) => refusal(CHECK, host, &error),
    }
}

/// Whether a part of the image's first layer comes as a part; `None` for an image without layers.
async fn range(client: &Client, image: &Reference) -> Result<Option<bool>, RegistryError> {
    let found = client.image(image, &Platform::host()).await?;
    let Some(layer) = found.manifest.layers.first() else { return Ok(None) };
    client.serves_ranges(image.repository(), &layer.digest).await.map(Some)
}

fn judge_range(image: &Reference, answer: Result<Option<bool>, RegistryError>) -> Finding {
    match answer {
        Ok(Some(true)) => Finding::ok(RANGE, format!("parts of the layers of {image} can be read")),
        Ok(None) => Finding::ok(RANGE, format!("{image} has no layers")),
        Ok(Some(false)) => Finding::warning(
            RANGE,
            format!("a part of a layer of {image} was asked for and the whole one came"),
            "something on the way ignores Range requests: let it pass them through, or each read \
             costs a whole layer",
        ),
        Err(error) => refusal(RANGE, &image.to_string(), &error),
    }
}

fn refusal(check: &'static str, what: &str, error: &RegistryError) -> Finding {
    let advice = match &error.fault {
        Fault::Unauthorized { .. } | Fault::NoCredentials => {
            "log in with `podman login`, or name the file as [registries] auth_file"
        }
        Fault::NotTls(_) => "it does not speak TLS: name it in [registries] plain_http",
        fault if fault.is_from_tls() => {
            "put its CA into /etc/containers/certs.d/HOST/ca.crt or [registries] ca_files"
        }
        Fault::NotFound(_) => "look for a mistake in the name, or prepare the image",
        _ => {
            "see whether it runs, and whether routes, firewalls and proxies let this host reach it"
        }
    };
    Finding::broken(check, format!("{what}: {}", error.fault.in_words()), advice)
}
