//! The name of the pod to be: `<name>-shadow`, and `<name>` again on the next move.

/// A pod's name is its host name, which has at most so many characters.
const LONGEST: usize = 63;
const SHADOW: &str = "-shadow";
const MOVED: &str = "-moved";

/// What a pod is called, and was called before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Called<'a> {
    /// Its name.
    pub name: &'a str,
    /// It has left its StatefulSet, and never bears the name again by which the set knows its own.
    pub has_left: bool,
    /// The name it had before its last move, if that was too long to be seen in its own.
    pub before: Option<&'a str>,
}

impl<'a> Called<'a> {
    /// A pod that was never moved, or has a name that tells the one before.
    pub fn plainly(name: &'a str) -> Self {
        Self { name, has_left: false, before: None }
    }
}

/// The name of the target pod. A pod that has left its StatefulSet becomes `<name>-moved` in place of
/// `<name>`.
pub fn target_name(source: Called<'_>) -> String {
    let Called { name, has_left, before } = source;
    let base = |suffix| name.strip_suffix(suffix).filter(|base| !base.is_empty());
    // Annotations are copied by users, names are not.
    let before = before.filter(|before| !has_left && with_suffix(before, SHADOW) == name);
    match (base(SHADOW), base(MOVED).filter(|_| has_left)) {
        (Some(base), _) if has_left => with_suffix(base, MOVED),
        (Some(base), _) => before.unwrap_or(base).to_owned(),
        (None, Some(base)) => with_suffix(base, SHADOW),
        (None, None) => with_suffix(name, SHADOW),
    }
}

/// The name that must be written down beside `target`, the name of a copy of `source`, for the next
/// move to find it again.
pub fn written_down<'a>(source: &'a str, target: &str) -> Option<&'a str> {
    let shortened = target.ends_with(SHADOW) && target.strip_suffix(SHADOW) != Some(source);
    (shortened && with_suffix(source, SHADOW) == target).then_some(source)
}

/// What does not fit gives way to a digest of the whole, so that two long siblings do not meet.
fn with_suffix(name: &str, suffix: &str) -> String {
    if name.len() + suffix.len() <= LONGEST {
        return format!("{name}{suffix}");
    }
    let digest = format!("-{:08x}", digest(name));
    let base: String = name.chars().take(LONGEST - digest.len() - suffix.len()).collect();
    format!("{}{digest}{suffix}", base.trim_end_matches(['-', '.']))
}

/// FNV-1a: the same on every machine and in every version.
fn digest(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(name: &str, before: &str) -> String {
        target_name(Called { before: Some(before), ..Called::plainly(name) })
    }

    #[test]
    fn two_names_take_turns() {
        assert_eq!(target_name(Called::plainly("app-2")), "app-2-shadow");
        assert_eq!(target_name(Called::plainly("app-2-shadow")), "app-2");
        assert_eq!(written_down("app-2", "app-2-shadow"), None);
        assert_eq!(written_down("app-2-shadow", "app-2"), None);
        // A pod may be called that from the beginning.
        assert_eq!(target_name(Called::plainly("-shadow")), "-shadow-shadow");
    }

    #[test]
    fn a_pod_that_has_left_its_set_is_never_called_as_before() {
        fn left(name: &str) -> String {
            target_name(Called { has_left: true, ..Called::plainly(name) })
        }
        assert_eq!(left("app-2-shadow"), "app-2-moved");
        assert_eq!(left("app-2-moved"), "app-2-shadow");
        assert_eq!(target_name(Called::plainly("app-2-moved")), "app-2-moved-shadow");
        let long = left(&target_name(Called::plainly(&"a".repeat(63))));
        assert_eq!(long.len(), 62, "{long}");
        assert_eq!(left(&left(&long)), long, "its names take turns, too");
    }

    #[test]
    fn what_is_too_long_is_shortened_and_found_again() {
        let siblings = ["a", "b"].map(|end| format!("{}{end}", "x".repeat(62)));
        let shadows = siblings.each_ref().map(|name| target_name(Called::plainly(name)));
        assert_ne!(shadows[0], shadows[1]);
        for (name, shadow) in siblings.iter().zip(&shadows) {
            assert_eq!(shadow.len(), 63);
            assert_eq!(written_down(name, shadow), Some(name.as_str()));
            assert_eq!(back(shadow, name), *name);
            assert_eq!(written_down(shadow, name), None);
        }
        assert_ne!(back(&shadows[0], &siblings[1]), siblings[1], "not another's name");
        let dotted = format!("{}.{}", "x".repeat(46), "y".repeat(16));
        assert!(target_name(Called::plainly(&dotted)).starts_with(&format!("{}-", "x".repeat(46))));
        assert_eq!(target_name(Called::plainly(&"x".repeat(56))).len(), 63, "just fits");
    }
}
