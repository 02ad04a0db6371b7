//! Suggests the known name that is nearest to an unknown one.

/// Returns the message that there is no option `name`. It suggests the nearest of the `known`
/// options if at most a third of the bytes of `name` differ.
pub fn unknown_option<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let shown = name.escape_debug();
    let most = name.len().max(3) / 3;
    let near = known
        .into_iter()
        .filter_map(|known| Some((distance(name, known, most)?, known)))
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, near)) => format!("unknown option \"{shown}\": did you mean \"{near}\"?"),
        None => format!("unknown option \"{shown}\""),
    }
}

/// Returns how many bytes must be inserted, removed, replaced or swapped with their neighbour to
/// turn `a` into `b` (Damerau–Levenshtein, optimal string alignment). Returns `None` if there are
/// more than `most`.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    let [a, b] = [a.as_bytes(), b.as_bytes()];
    // Names whose lengths differ by more than `most` need no table.
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let width = b.len() + 1;
    // The cell of row `i` and column `j` holds the distance between the first `i` bytes of `a` and
    // the first `j` bytes of `b`.
    let mut cells: Vec<usize> = (0..width).collect();
    for i in 1..=a.len() {
        cells.push(i);
        for j in 1..width {
            let at = |i: usize, j: usize| cells[i * width + j];
            let differ = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (at(i - 1, j) + 1)
                .min(at(i, j - 1) + 1)
                .min(at(i - 1, j - 1) + differ);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(at(i - 2, j - 2) + 1);
            }
            cells.push(least);
        }
    }
    cells.last().copied().filter(|distance| *distance <= most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn distances_of_known_pairs() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("relay", "relays", 1),
            ("rleays", "relays", 1),
            ("kitten", "sitting", 3),
            ("ca", "abc", 3),
            ("relasy", "relays", 1),
            ("abcdefhg", "abcdefgh", 1),
            ("größe", "grösse", 2),
        ] {
            assert_eq!(distance(a, b, 9), Some(expected), "{a} {b}");
            assert_eq!(distance(b, a, 9), Some(expected), "{b} {a}");
        }
        assert_eq!(distance("kitten", "sitting", 2), None);
    }

    #[test]
    fn the_nearest_is_named_and_nothing_else() {
        let known = ["relay_timeout_ms", "relays", "reserve"];
        let say = |name| unknown_option(name, known);
        assert_eq!(
            say("relay"),
            "unknown option \"relay\": did you mean \"relays\"?"
        );
        assert_eq!(
            say("relay_timeout"),
            "unknown option \"relay_timeout\": did you mean \"relay_timeout_ms\"?"
        );
        assert_eq!(say("colour"), "unknown option \"colour\"");
        assert_eq!(say("\u{1b}[1m"), "unknown option \"\\u{1b}[1m\"");
        assert_eq!(unknown_option("x", []), "unknown option \"x\"");
    }

    proptest! {
        #[test]
        fn a_distance_is_one(a in "[ab]{0,6}", b in "[ab]{0,6}") {
            prop_assert_eq!(distance(&a, &b, 9), distance(&b, &a, 9));
            prop_assert_eq!(distance(&a, &b, 9) == Some(0), a == b);
            let longest = a.len().max(b.len());
            prop_assert!(distance(&a, &b, longest).is_some());
        }
    }
}
