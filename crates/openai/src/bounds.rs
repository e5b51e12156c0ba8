//! The one table of bounds on what a client may send.
//!
//! Each is checked before anything is allocated or computed by the client's number, and each refusal names the bound.

/// A row of the table, for documentation and `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub name: &'static str,
    pub default: u64,
    pub doc: &'static str,
}

macro_rules! bounds {
    ($( $(#[doc = $doc:literal])+ $name:ident = $default:literal, )+) => {
        /// What a request may ask for at most. Every field can be set; [`Bounds::default`] is what we ship.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Bounds {
            $( $(#[doc = $doc])+ pub $name: u64, )+
        }

        impl Default for Bounds {
            fn default() -> Self {
                Self { $( $name: $default, )+ }
            }
        }

        impl Bounds {
            /// Every bound with its default and meaning, in the order of the struct.
            pub const TABLE: &'static [Bound] = &[
                $( Bound { name: stringify!($name), default: $default, doc: concat!($($doc),+).trim_ascii_start() }, )+
            ];
        }
    };
}

bounds! {
    /// Bytes of a request body.
    body_bytes = 4_194_304,
    /// Nesting of JSON arrays and objects.
    json_depth = 64,
    /// Values in one body: a few megabytes of `[],[],` must not become hundreds in memory.
    json_values = 262_144,
    /// Keys of all objects in one body, each of which takes several times the memory of a value.
    json_keys = 65_536,
    /// Prompts of one completion request.
    prompts = 1024,
    /// Messages of one chat request.
    messages = 1024,
    /// Choices per prompt (`n` and `best_of`).
    n = 8,
    /// Sequences of one request: prompts x best_of.
    choices = 1024,
    /// Stop strings.
    stop = 4,
    /// Bytes of one stop string.
    stop_bytes = 256,
    /// Entries of stop_token_ids.
    stop_token_ids = 256,
    /// Entries of logit_bias.
    logit_bias = 1024,
    /// Entries of allowed_token_ids.
    allowed_token_ids = 16_384,
    /// Entries of bad_words.
    bad_words = 256,
    /// Bytes of one bad word.
    bad_word_bytes = 256,
    /// Alternatives reported per token (`logprobs` of completions, `top_logprobs` of chat).
    top_logprobs = 20,
    /// Entries of a prompt's reported logprobs: tokens of all prompts x (alternatives + 1) x n.
    prompt_logprobs = 1_048_576,
    /// Entries of tools.
    tools = 128,
    /// Bytes of tools as JSON.
    tools_bytes = 262_144,
    /// Bytes of chat_template_kwargs as JSON.
    chat_template_kwargs_bytes = 65_536,
    /// Bytes of a request's own chat_template.
    chat_template_bytes = 65_536,
    /// Bytes of a JSON schema or of a grammar.
    grammar_bytes = 65_536,
    /// Nesting of a JSON schema.
    schema_depth = 32,
    /// Bytes of a regular expression that the output must match.
    regex_bytes = 4096,
    /// Entries of guided_choice.
    choice_texts = 1024,
    /// Entries of documents.
    documents = 256,
    /// Characters of cache_salt.
    cache_salt_chars = 128,
    /// Characters of model, request_id and a message's role.
    name_chars = 256,
}
