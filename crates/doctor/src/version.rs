//! Versions as programs print them.

use std::fmt;

/// A version; what is not given is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// The first version in `text`: `cri-o://1.36.3`, `v1.36.3+k3s1`, `Version: 4.1.1`, `crun version 1.21`,
    /// `6.18.5-generic`.
    pub fn find(text: &str) -> Option<Self> {
        let words = text.split(|c: char| !(c.is_ascii_digit() || c == '.'));
        words.filter(|word| word.contains('.')).find_map(Self::parse)
    }

    fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split('.');
        let major = parts.next()?.parse().ok()?;
        let mut rest = parts.map_while(|part| part.parse().ok());
        Some(Self(major, rest.next()?, rest.next().unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        if *patch == 0 {
            write!(f, "{major}.{minor}")
        } else {
            write!(f, "{major}.{minor}.{patch}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_as_programs_print_them() {
        for (text, version) in [
            ("cri-o://1.36.3", Some(Version(1, 36, 3))),
            ("containerd://2.2.7-rc.1", Some(Version(2, 2, 7))),
            ("v1.36.3+k3s1", Some(Version(1, 36, 3))),
            ("Version: 4.1.1\nGitID: v4", Some(Version(4, 1, 1))),
            ("crun version 1.21", Some(Version(1, 21, 0))),
            ("6.18.5-generic", Some(Version(6, 18, 5))),
            ("cri-o://", None),
            ("...", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(Version::find(text), version, "{text}");
        }
        assert!(Version(1, 9, 0) < Version(1, 21, 0));
    }
}
