//! The names of files: which of them are safe to write, and what to do about the others.

/// The longest name of a file in bytes. Most file systems take this length.
pub(crate) const MAX_NAME: usize = 255;
/// How deep the folders of a file may be.
pub(crate) const MAX_FOLDERS: usize = 32;

/// Direction marks make `gpj.exe` look like `exe.jpg`.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns why `name` does not name a visible file in one directory on every system, or does not look as
/// it is. It returns `None` for a name that does.
pub(crate) fn fault(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > MAX_NAME {
        let length = name.len();
        return Some(format!(
            "a name has 1 to {MAX_NAME} bytes, and this one has {length}"
        ));
    }
    if name.starts_with('.') {
        return Some(String::from(
            "it begins with a dot, so the receiver would not see it",
        ));
    }
    let bad = |c: &char| "/\\:".contains(*c) || c.is_control() || is_mark(*c);
    let found = name.chars().find(bad)?;
    let code = u32::from(found);
    Some(match found {
        '/' | '\\' | ':' => format!("it has `{found}`, which leads elsewhere on some systems"),
        _ if is_mark(found) => {
            format!("it has U+{code:04X}, which makes it look like another name")
        }
        _ => format!("it has the control character U+{code:04X}"),
    })
}

/// Returns the name of the copy with this number, counted from 1. The first one is `name` itself. A name
/// that would become too long loses the end of its stem.
pub(crate) fn numbered(name: &str, copy: u32) -> String {
    if copy == 1 {
        return name.to_owned();
    }
    // What follows the last dot is no extension if it is most of the name.
    let (stem, extension) = match name.rfind('.') {
        Some(at) if name.len() - at <= 32 => name.split_at(at),
        _ => (name, ""),
    };
    let suffix = format!(" ({copy}){extension}");
    let mut end = stem.len().min(MAX_NAME.saturating_sub(suffix.len()));
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &stem[..end])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_deceive_or_lead_elsewhere_are_refused_by_what_is_wrong() {
        for good in ["a", "a.txt", "ü b (1).tar.gz", &"x".repeat(255)] {
            assert_eq!(fault(good), None, "{good}");
        }
        for (bad, why) in [
            ("", "1 to 255 bytes"),
            (".", "a dot"),
            ("..", "a dot"),
            (".bashrc", "a dot"),
            ("a/b", "`/`"),
            ("a\\b", "`\\`"),
            ("c:d", "`:`"),
            ("a\nb", "U+000A"),
            ("a\0", "U+0000"),
            ("\u{202e}gpj.exe", "U+202E"),
            (&"x".repeat(256), "has 256"),
        ] {
            let told = fault(bad).unwrap_or_else(|| panic!("{bad:?}"));
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn copies_have_numbers_and_room_for_them() {
        assert_eq!(numbered("a.txt", 1), "a.txt");
        assert_eq!(numbered("a.txt", 2), "a (2).txt");
        assert_eq!(numbered("a", 10), "a (10)");
        let long = format!("{}.txt", "ü".repeat(124));
        assert_eq!(long.len(), 252);
        let copy = numbered(&long, 2);
        assert!(
            copy.len() <= MAX_NAME && copy.ends_with("ü (2).txt"),
            "{copy}"
        );
        assert_ne!(copy, numbered(&long, 3));
        assert!(numbered(&"x".repeat(255), 1000).len() <= MAX_NAME);
    }

    proptest! {
        #[test]
        fn a_safe_name_is_one_component_and_so_are_its_copies(
            name in "\\PC{0,40}",
            copy in 1u32..2000,
        ) {
            if fault(&name).is_none() {
                for name in [numbered(&name, copy), name] {
                    let path = Path::new("/inbox").join(&name);
                    prop_assert_eq!(path.parent(), Some(Path::new("/inbox")));
                    prop_assert_eq!(fault(&name), None);
                }
            }
        }
    }
}
