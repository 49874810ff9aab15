//! A Rust source file as rules want to see it: code and comments apart, texts blanked.

/// A line, split.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// The code, with the content of string and character literals left out.
    pub(crate) code: String,
    /// The comment text, of whatever kind of comment.
    pub(crate) comment: String,
}

impl Line {
    /// Whether the line has neither code nor comment.
    pub(crate) fn is_blank(&self) -> bool {
        self.code.trim().is_empty() && self.comment.trim().is_empty()
    }

    /// Whether `word` is in the code as a word of its own.
    pub(crate) fn has_word(&self, word: &str) -> bool {
        contains_word(&self.code, word)
    }
}

/// Whether `word` is in `text`, not as a part of a longer word.
pub(crate) fn contains_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(start, _)| {
        !text[..start].ends_with(part_of_word)
            && !text[start + word.len()..].starts_with(part_of_word)
    })
}

/// Splits a source file into lines.
pub(crate) fn split(text: &str) -> Vec<Line> {
    let characters: Vec<char> = text.chars().collect();
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let mut position = 0;
    while position < characters.len() {
        let rest = &characters[position..];
        if rest[0] == '\n' {
            if state == State::LineComment {
                state = State::Code;
            }
            lines.push(Line::default());
            position += 1;
            continue;
        }
        let line = lines.last_mut().expect("starts with one and grows");
        let previous = position.checked_sub(1).map(|before| characters[before]);
        let (next, length) = step(state, rest, previous);
        let taken: String = rest[..length].iter().filter(|&&c| c != '\n').collect();
        match (state, next) {
            (State::Code, State::LineComment | State::BlockComment { .. }) => {
                line.comment.push_str(&taken);
            }
            (State::LineComment | State::BlockComment { .. }, _) => line.comment.push_str(&taken),
            // The quotes stay, what is between them does not.
            (State::Code, _) => line.code.push_str(&taken),
            (State::Text { .. }, State::Code) => line.code.push('"'),
            (State::Text { .. }, _) => {
                // An escaped line end ends the line all the same.
                if rest[..length].contains(&'\n') {
                    lines.push(Line::default());
                }
            }
        }
        state = next;
        position += length;
    }
    lines
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    BlockComment {
        depth: u32,
    },
    /// A string; a raw one ends with as many `#` as it starts with, and has no escapes.
    Text {
        raw: bool,
        hashes: usize,
    },
}

/// What follows, and how many characters belong to what is before it.
fn step(state: State, rest: &[char], previous: Option<char>) -> (State, usize) {
    let starts = |pattern: &str| rest.iter().take(pattern.len()).copied().eq(pattern.chars());
    match state {
        State::LineComment => (state, 1),
        State::BlockComment { depth } if starts("*/") => match depth {
            1 => (State::Code, 2),
            _ => (State::BlockComment { depth: depth - 1 }, 2),
        },
        State::BlockComment { depth } if starts("/*") => {
            (State::BlockComment { depth: depth + 1 }, 2)
        }
        State::BlockComment { .. } => (state, 1),
        State::Text { raw: false, .. } if rest[0] == '\\' => (state, rest.len().min(2)),
        State::Text { raw: false, .. } if rest[0] == '"' => (State::Code, 1),
        State::Text { raw: true, hashes }
            if rest[0] == '"' && rest[1..].iter().take_while(|&&c| c == '#').count() >= hashes =>
        {
            (State::Code, 1 + hashes)
        }
        State::Text { .. } => (state, 1),
        State::Code if starts("//") => (State::LineComment, 2),
        State::Code if starts("/*") => (State::BlockComment { depth: 1 }, 2),
        State::Code if rest[0] == '"' => (State::Text { raw: false, hashes: 0 }, 1),
        State::Code if rest[0] == '\'' => (State::Code, character(rest)),
        State::Code => {
            let in_word = previous.is_some_and(|c| c.is_alphanumeric() || c == '_');
            match raw_start(rest) {
                Some((hashes, length)) if !in_word => (State::Text { raw: true, hashes }, length),
                _ => (State::Code, 1),
            }
        }
    }
}

/// How long the character literal is, or 1 for the quote of a lifetime.
fn character(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', _, tail @ ..] => {
            tail.iter().position(|&c| c == '\'' || c == '\n').map_or(1, |end| end + 4)
        }
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

/// The number of `#` and the length of the start of a raw string, such as `br##"`.
fn raw_start(rest: &[char]) -> Option<(usize, usize)> {
    let prefix = match rest {
        ['r', ..] => 1,
        ['b' | 'c', 'r', ..] => 2,
        _ => return None,
    };
    let hashes = rest[prefix..].iter().take_while(|&&c| c == '#').count();
    (rest.get(prefix + hashes) == Some(&'"')).then_some((hashes, prefix + hashes + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let lines = split(text);
        let actual: Vec<(&str, &str)> =
            lines.iter().map(|line| (line.code.as_str(), line.comment.as_str())).collect();
        assert_eq!(actual, expected, "{text:?}");
    }

    #[test]
    fn tells_code_from_comments() {
        check("a // b\nc", &[("a ", "// b"), ("c", "")]);
        check("a /* b\nc */ d", &[("a ", "/* b"), (" d", "c */")]);
        check("/* a /* b */ c */ d", &[(" d", "/* a /* b */ c */")]);
    }

    #[test]
    fn leaves_texts_out() {
        check(r#"a("x // y", 1)"#, &[(r#"a("", 1)"#, "")]);
        check("\"a\\\"b\" c", &[("\"\" c", "")]);
        check("\"a\nb\" c", &[("\"", ""), ("\" c", "")]);
        check("\"a\\\nb\" c", &[("\"", ""), ("\" c", "")]);
        check("r#\"a\"b\"# c", &[("r#\"\" c", "")]);
        check("br\"\\\" c", &[("br\"\" c", "")]);
        check("for \"a\"", &[("for \"\"", "")]);
    }

    #[test]
    fn knows_characters_from_lifetimes() {
        check("'\"' // c", &[("'\"' ", "// c")]);
        check("'\\'' \"x\"", &[("'\\'' \"\"", "")]);
        check("'\\u{7f}' // c", &[("'\\u{7f}' ", "// c")]);
        check("&'a str // c", &[("&'a str ", "// c")]);
    }

    #[test]
    fn finds_words() {
        assert!(contains_word("(unsafe {", "unsafe"));
        assert!(!contains_word("unsafe_code", "unsafe"));
        assert!(!contains_word("not_unsafe", "unsafe"));
        assert!(contains_word("unsafe_code unsafe", "unsafe"));
    }
}
