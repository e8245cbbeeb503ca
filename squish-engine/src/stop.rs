//! Ending generation at a stop string, even one that spans several pieces of text.

/// Watches a growing text for stop strings.
///
/// The text ends before the stop string that is *completed first*; of several completed at the same
/// character, before the longest. This definition looks only at the text, so the result does not
/// depend on how the text is cut into pieces.
///
/// Only text that could still become a stop string is held back.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// Watches for any of `stops`; empty strings are ignored.
    pub fn new(stops: &[String]) -> Self {
        StopMatcher {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Appends `piece` and returns the text that is now certain to precede every stop string.
    ///
    /// Once a stop string is complete, [`stopped`](Self::stopped) is true and later text is dropped.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_match() {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.held.split_off(self.certain_len());
        std::mem::replace(&mut self.held, keep)
    }

    /// Returns what was held back: the text has ended, so it is no longer the start of a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Start of the match that ends first, the longest of those.
    fn first_match(&self) -> Option<usize> {
        let matches = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        matches.min().map(|(_end, start)| start)
    }

    /// Length of the held text without its longest suffix that begins a stop string.
    fn certain_len(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let mut starts = self.held.char_indices().map(|(start, _)| start);
        starts
            .find(|&start| {
                start >= from && {
                    let suffix = &self.held[start..];
                    self.stops.iter().any(|stop| stop.starts_with(suffix))
                }
            })
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn holds_back_only_a_possible_beginning() {
        let mut m = matcher(&["\nUser:"]);
        assert_eq!(m.push("Hello.\nUs"), "Hello.");
        assert_eq!(m.push("eful"), "\nUseful");
        assert_eq!(m.push("\nUser"), "");
        assert_eq!(m.push(": more"), "");
        assert!(m.stopped());
        assert_eq!(m.push("anything"), "");
        assert_eq!(m.finish(), "");
    }

    #[test]
    fn the_end_releases_what_was_held() {
        let mut m = matcher(&["END"]);
        assert_eq!(m.push("the EN"), "the ");
        assert_eq!(m.finish(), "EN");
        assert!(!m.stopped());
    }

    #[test]
    fn first_completed_wins_and_then_the_longest() {
        let mut m = matcher(&["abcd", "b"]);
        assert_eq!(m.push("xabcd"), "xa");
        let mut m = matcher(&["b", "ab"]);
        assert_eq!(m.push("xab"), "x");
    }

    #[test]
    fn without_stops_nothing_is_held() {
        let mut m = matcher(&[""]);
        assert_eq!(m.push("é🙂"), "é🙂");
        assert!(!m.stopped());
    }

    /// The definition, letter by letter: at each end, is there a stop string that ends here?
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        let ends = text.char_indices().map(|(i, c)| i + c.len_utf8());
        for end in ends {
            let here = stops.iter().filter(|s| text[..end].ends_with(s.as_str()));
            if let Some(longest) = here.map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_in_the_whole_text(
            pieces in prop::collection::vec("[abé🙂]{0,4}", 0..12),
            stops in prop::collection::vec("[abé🙂]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let (expected, stopped) = naive(&text, &stops);
            let mut m = StopMatcher::new(&stops);
            let mut got = String::new();
            for piece in &pieces {
                got += &m.push(piece);
                prop_assert!(expected.starts_with(&got), "text was released too early");
                prop_assert!(m.held.is_empty() || stops.iter().any(|s| s.starts_with(&m.held)));
            }
            got += &m.finish();
            prop_assert_eq!(got, expected);
            prop_assert_eq!(m.stopped(), stopped);
        }
    }
}
