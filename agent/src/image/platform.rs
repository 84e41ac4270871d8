//! Platforms in the words of OCI (which are Go's), and the choice among the images of an index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// This processor, in Go's words.
const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
    "ppc64le"
} else if cfg!(target_arch = "s390x") {
    "s390x"
} else if cfg!(target_arch = "riscv64") {
    "riscv64"
} else if cfg!(target_arch = "arm") {
    "arm"
} else {
    "unknown"
};

/// An operating system and processor, `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, `ppc64le` and so on.
    #[serde(default)]
    pub architecture: String,
    /// `v7` of arm, `v8` of arm64, `v3` of amd64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Text that is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a platform (os/architecture or os/architecture/variant, such as linux/arm64)"
)]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform this program was built for; images run where it runs.
    pub fn host() -> Self {
        Self { os: "linux".into(), architecture: ARCHITECTURE.into(), variant: None }
    }

    /// How well an image for `offer` runs here: the higher the better, `None` not at all.
    ///
    /// A variant that is not written means the usual one (arm v7, arm64 v8, amd64 v1). An arm
    /// processor also runs older variants; the nearest one is the best.
    pub fn suits(&self, offer: &Self) -> Option<u32> {
        if self.os != offer.os || self.architecture != offer.architecture {
            return None;
        }
        let (wanted, offered) = (self.usual_variant(), offer.usual_variant());
        if wanted == offered {
            return Some(u32::MAX);
        }
        let (wanted, offered) = (variant_number(wanted)?, variant_number(offered)?);
        let older_runs = matches!(self.architecture.as_str(), "arm" | "amd64");
        (older_runs && offered < wanted).then_some(offered)
    }

    fn usual_variant(&self) -> &str {
        match (self.variant.as_deref(), self.architecture.as_str()) {
            (Some(variant), _) if !variant.is_empty() => variant,
            (_, "arm") => "v7",
            (_, "arm64") => "v8",
            (_, "amd64") => "v1",
            _ => "",
        }
    }
}

fn variant_number(variant: &str) -> Option<u32> {
    variant.strip_prefix('v')?.parse().ok()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next(), parts.next());
        let (variant, rest) = (parts.next(), parts.next());
        match (os, architecture, rest) {
            (Some(os), Some(architecture), None)
                if !os.is_empty() && !architecture.is_empty() && variant != Some("") =>
            {
                Ok(Self {
                    os: os.into(),
                    architecture: architecture.into(),
                    variant: variant.map(Into::into),
                })
            }
            _ => Err(ParsePlatformError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn text_round_trips_and_nonsense_is_refused() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/", "linux/arm/v7/x"] {
            let message = text.parse::<Platform>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{text}`")), "{message}");
        }
    }

    #[test]
    fn an_image_suits_its_own_and_arm_also_newer_processors() {
        for (here, offer, suits) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v1", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/amd64/v3", "linux/amd64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64", "linux/arm/v7", false),
            ("linux/arm", "linux/arm/v6", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/amd64", "windows/amd64", false),
        ] {
            let suited = platform(here).suits(&platform(offer)).is_some();
            assert_eq!(suited, suits, "{offer} on {here}");
        }
        let here = platform("linux/arm/v7");
        assert!(here.suits(&platform("linux/arm/v6")) > here.suits(&platform("linux/arm/v5")));
        assert!(here.suits(&here) > here.suits(&platform("linux/arm/v6")));
    }
}
