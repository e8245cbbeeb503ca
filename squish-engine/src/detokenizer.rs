//! Text from tokens as they come, never with part of a character.

use crate::{Result, Tokenizer};

/// An incomplete character is at most three bytes long, which a decoder shows as one to three
/// U+FFFD.
const MAX_HELD_CHARS: usize = 3;

/// Tokens that may wait for the end of a character. Every token has at least one byte, so beyond
/// this they are not waiting for anything that will come.
const MAX_PENDING: usize = 8;

/// Decodes tokens one at a time.
///
/// A token may end in the middle of a UTF-8 character; such bytes wait for the tokens that complete
/// it. Bytes that can no longer become a character come out as U+FFFD, so none waits for ever. The
/// pieces put together equal [`Tokenizer::decode`] of all tokens at once, for byte-level tokenizers
/// always, for byte-fallback ones as long as the bytes are valid UTF-8. Special tokens and ids that
/// the tokenizer does not know have no text.
///
/// A token's text can depend on the one before it (a leading space, a character begun), so the last
/// few are decoded again before each new one: constant work for a token.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// Tokens whose text has been given out, kept to decode the next ones after them.
    context: Vec<u32>,
    /// The text of `context` that has been given out.
    context_text: String,
    /// Tokens whose text has not been given out.
    pending: Vec<u32>,
}

impl Detokenizer {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        Detokenizer { tokenizer, context: Vec::new(), context_text: String::new(), pending: Vec::new() }
    }

    /// Appends a token and returns the characters that are complete with it, often none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the tokenizer's decoder fails.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if !self.tokenizer.is_text(token) {
            return Ok(String::new());
        }
        self.pending.push(token);
        let text = self.pending_text()?;
        let held = held_len(&text);
        if held > 0 && self.pending.len() <= MAX_PENDING {
            return Ok(String::new());
        }
        self.context = std::mem::take(&mut self.pending);
        self.context_text = self.tokenizer.decode(&self.context)?;
        self.context_text.truncate(self.context_text.len().saturating_sub(held));
        Ok(text[..text.len() - held].to_owned())
    }

    /// The rest: bytes still waiting become U+FFFD. The tokens have ended; a new text may begin.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        let rest = self.pending_text()?;
        self.context.clear();
        self.context_text.clear();
        self.pending.clear();
        Ok(rest)
    }

    fn pending_text(&self) -> Result<String> {
        let together = self.tokenizer.decode(&[&*self.context, &*self.pending].concat())?;
        match together.strip_prefix(&self.context_text) {
            Some(text) => Ok(text.to_owned()),
            // A byte-fallback decoder gives up a whole run of bytes when one of them is wrong, and
            // with it what it had decoded before.
            None => self.tokenizer.decode(&self.pending),
        }
    }
}

/// Length in bytes of the U+FFFD at the end of `text` that may still become a character.
fn held_len(text: &str) -> usize {
    let replaced = text.chars().rev().take_while(|&c| c == char::REPLACEMENT_CHARACTER);
    replaced.take(MAX_HELD_CHARS).count() * char::REPLACEMENT_CHARACTER.len_utf8()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{real_dir, tiny_tokenizer_dir};
    use proptest::prelude::*;
    use std::sync::OnceLock;

    fn pieces(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
        let mut detokenizer = tokenizer.detokenizer();
        let mut pieces: Vec<_> = tokens.iter().map(|&t| detokenizer.push(t).unwrap()).collect();
        pieces.push(detokenizer.finish().unwrap());
        pieces
    }

    /// A byte-level tokenizer whose token b is the byte b.
    fn bytes() -> &'static Tokenizer {
        static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
        TOKENIZER.get_or_init(|| Tokenizer::from_dir(tiny_tokenizer_dir().path()).unwrap())
    }

    fn tokens(bytes: &[u8]) -> Vec<u32> {
        bytes.iter().map(|&b| u32::from(b)).collect()
    }

    #[test]
    fn a_character_comes_out_whole() {
        assert_eq!(pieces(bytes(), &tokens("é🙂x".as_bytes())), ["", "é", "", "", "", "🙂", "x", ""]);
    }

    #[test]
    fn a_stray_byte_does_not_hold_up_the_text() {
        let got = pieces(bytes(), &tokens(b"a\x80b"));
        assert_eq!(got, ["a", "", "\u{fffd}b", ""]);
        let only_strays = pieces(bytes(), &tokens(&[0x80; 100]));
        let before_the_end: usize = only_strays[..100].iter().map(|p| p.chars().count()).sum();
        assert!(before_the_end > 85, "{before_the_end}");
    }

    #[test]
    fn an_unfinished_character_ends_as_a_replacement() {
        assert_eq!(pieces(bytes(), &tokens(b"a\xf0\x9f\x99")), ["a", "", "", "", "\u{fffd}"]);
    }

    #[test]
    fn special_and_unknown_tokens_have_no_text() {
        let end = bytes().token_id("<|end|>").unwrap();
        // Even in the middle of a character.
        assert_eq!(pieces(bytes(), &[0xc3, end, 999_999, 0xa9]), ["", "", "", "é", ""]);
    }

    #[test]
    fn byte_fallback_runs() {
        let dir = tempfile::tempdir().unwrap();
        let vocabulary: Vec<String> = (0..=255).map(|b| format!("[\"<0x{b:02X}>\", 0.0]")).collect();
        let json = format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {{"type": "Sequence", "decoders": [
                {{"type": "Replace", "pattern": {{"String": "▁"}}, "content": " "}},
                {{"type": "ByteFallback"}}, {{"type": "Fuse"}}]}},
            "model": {{"type": "Unigram", "unk_id": 0, "byte_fallback": true,
                "vocab": [{}, ["▁a", -1.0]]}}}}"#,
            vocabulary.join(",")
        );
        std::fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let mut ids = tokens("你好".as_bytes());
        ids.push(256);
        assert_eq!(pieces(&tokenizer, &ids).concat(), "你好 a");
        assert_eq!(pieces(&tokenizer, &ids), ["", "", "你", "", "", "好", " a", ""]);
        // After a wrong byte the run is lost, but not the text around it.
        let broken = [&ids[..3], &[0x80], &ids[3..]].concat();
        assert_eq!(pieces(&tokenizer, &broken).concat(), "你\u{fffd}\u{fffd}\u{fffd}\u{fffd} a");
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(
            parts in prop::collection::vec(prop_oneof![
                "[aé€🙂]{0,3}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..6),
                prop::collection::vec(0x80u8..0xf8, 0..20),
            ], 0..8),
        ) {
            let tokens = tokens(&parts.concat());
            let got = pieces(bytes(), &tokens);
            prop_assert_eq!(got.concat(), bytes().decode(&tokens).unwrap());
        }
    }

    #[test]
    fn the_real_tokenizer_splits_characters() {
        let Some(dir) = real_dir("qwen2.5-0.5b-instruct") else {
            return;
        };
        let tokenizer = Tokenizer::from_dir(dir).unwrap();
        let text = "Ünïcödé: 👩‍👩‍👧 𝔘𝔫𝔦 𓀀𓀁 한국어 עברית 🇫🇷 ﷽ e\u{301}\u{302}\u{323} ꙮ";
        let tokens = tokenizer.encode(text).unwrap();
        let whole = tokenizer.decode(&tokens).unwrap();
        let got = pieces(&tokenizer, &tokens);
        assert_eq!(got.concat(), whole);
        assert!(!got.iter().any(|p| p.contains('\u{fffd}')));
        assert!(got.iter().filter(|p| p.is_empty()).count() > 5, "no character was split");
    }

    #[test]
    fn random_tokens_of_the_real_tokenizer() {
        let Some(dir) = real_dir("qwen3-0.6b") else {
            return;
        };
        let tokenizer = Tokenizer::from_dir(dir).unwrap();
        let strategy = prop::collection::vec(0u32..152_000, 0..60);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let checked = runner.run(&strategy, |tokens| {
            let got = pieces(&tokenizer, &tokens).concat();
            prop_assert_eq!(got, tokenizer.decode(&tokens).unwrap());
            Ok(())
        });
        checked.unwrap();
    }
}
