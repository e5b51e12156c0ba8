//! Rewrites the few things that published templates use and the template engine lacks, keeping every line's number.
//!
//! A backslash at a line's end inside a string continues the string; `{% generation %}` marks an answer for training and renders as
//! nothing.

/// What the scanner is in the middle of.
enum Place {
    Text,
    Comment,
    Tag,
    /// Inside a tag, after this quote.
    String(char),
}

/// The template in the engine's dialect.
pub(crate) fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut place = Place::Text;
    // Line ends taken out of a string; they go behind it, where white space means nothing.
    let mut lines_owed = 0;
    let mut rest = source;
    while let Some(character) = rest.chars().next() {
        let mut taken = character.len_utf8();
        let two = rest.get(..2).unwrap_or_default();
        match place {
            Place::Text if two == "{#" => place = Place::Comment,
            Place::Text if two == "{%" || two == "{{" => {
                place = Place::Tag;
                let opening = opening(rest);
                taken = opening.len();
                out.push_str(opening);
                rest = &rest[taken..];
                if two == "{%" {
                    let (statement, word) = statement(rest);
                    out.push_str(statement);
                    rest = &rest[word..];
                }
                continue;
            }
            Place::Comment if two == "#}" => place = Place::Text,
            Place::Tag if two == "%}" || two == "}}" => place = Place::Text,
            Place::Tag if character == '"' || character == '\'' => place = Place::String(character),
            Place::String(quote) if character == quote => {
                out.push(quote);
                out.extend(std::iter::repeat_n('\n', std::mem::take(&mut lines_owed)));
                place = Place::Tag;
                rest = &rest[taken..];
                continue;
            }
            Place::String(_) if two == "\\\n" => {
                lines_owed += 1;
                rest = &rest[2..];
                continue;
            }
            Place::String(_) if character == '\\' => taken += rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

/// `{%`, `{{`, with the sign and the white space that follow.
fn opening(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    &tag[..tag.len() - inner.len()]
}

/// What a tag's first word becomes, and its length in the source.
fn statement(inner: &str) -> (&'static str, usize) {
    let word = inner
        .find(|character: char| !character.is_alphanumeric() && character != '_')
        .map_or(inner, |end| &inner[..end]);
    match word {
        "generation" => ("if true", word.len()),
        "endgeneration" => ("endif", word.len()),
        _ => ("", 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expected: &str) {
        let found = translate(source);
        assert_eq!(found, expected, "{source}");
        assert_eq!(found.matches('\n').count(), source.matches('\n').count(), "{source}");
    }

    #[test]
    fn strings_continue_over_a_backslash() {
        check("{{ \"a\\\nb\\\n\" + x }}\n", "{{ \"ab\"\n\n + x }}\n");
        check("{%- set x = 'it''s\\\\' %}\\\n", "{%- set x = 'it''s\\\\' %}\\\n");
        check("{{ 'a\\'\\\nb' }}", "{{ 'a\\'b'\n }}");
        check("text \\\n \"text\\\n\" {# \"\\\n #}{{ x }}", "text \\\n \"text\\\n\" {# \"\\\n #}{{ x }}");
        check("it's {{ 'a' }} isn't \\\n{{ \"b\\\n\" }}", "it's {{ 'a' }} isn't \\\n{{ \"b\"\n }}");
    }

    #[test]
    fn generation_marks_render_as_nothing() {
        check("{%- generation -%}a{% endgeneration %}", "{%- if true -%}a{% endif %}");
        check("{% if generation %}{{ 'generation' }}{% endif %}", "{% if generation %}{{ 'generation' }}{% endif %}");
        check("{{ generation }}", "{{ generation }}");
    }

    #[test]
    fn anything_else_stays() {
        for source in ["", "{", "{{", "{%", "{{ 'é\\", "é{{ \"ü\" }}ä", "{% if x %}\n{% endif %}", "{{- {'a': 1} }}"]
        {
            check(source, source);
        }
    }
}
