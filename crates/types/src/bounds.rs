//! Rows of the tables of bounds: a number for everything that comes from outside, and what happens above it.
//!
//! Each room that owns a door declares its bounds with [`bounds!`](crate::bounds!): a struct to set them, and a `table` from which
//! `docs/bounds.md` is written.

use std::fmt;
use std::time::Duration;

/// One bound, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub name: &'static str,
    pub value: Limit,
    /// What happens to who exceeds it.
    pub above: &'static str,
    pub doc: &'static str,
}

/// A bound's number with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Count(usize),
    Bytes(usize),
    Time(Duration),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Limit::Count(count) => write!(f, "{count}"),
            Limit::Bytes(bytes) if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => {
                write!(f, "{} MiB", bytes >> 20)
            }
            Limit::Bytes(bytes) if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => {
                write!(f, "{} KiB", bytes >> 10)
            }
            Limit::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Limit::Time(time) if time.subsec_millis() == 0 => write!(f, "{} s", time.as_secs()),
            Limit::Time(time) => write!(f, "{} ms", time.as_millis()),
        }
    }
}

/// Declares a struct of bounds with its defaults and its `table`. A row is `/// what it bounds`, then
/// `name: Count | Bytes | Time = default, "what happens above it";`. Fields that are tables of their own stand after `with`.
#[macro_export]
macro_rules! bounds {
    (
        $(#[$outer:meta])*
        $vis:vis struct $Name:ident {
            $( $(#[doc = $doc:literal])+ $name:ident: $kind:ident = $default:expr, $above:literal; )+
            $( with $( $(#[$inner:meta])* $table:ident: $Table:ty; )+ )?
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        $vis struct $Name {
            $( $(#[doc = $doc])+ $vis $name: $crate::bounds!(@type $kind), )+
            $( $( $(#[$inner])* $vis $table: $Table, )+ )?
        }

        impl Default for $Name {
            fn default() -> Self {
                Self { $( $name: $default, )+ $( $( $table: <$Table>::default(), )+ )? }
            }
        }

        impl $Name {
            /// Every bound with what happens above it.
            $vis fn table(&self) -> Vec<$crate::Bound> {
                vec![ $( $crate::Bound {
                    name: stringify!($name),
                    value: $crate::Limit::$kind(self.$name),
                    above: $above,
                    doc: concat!($($doc),+).trim_ascii_start(),
                }, )+ ]
            }
        }
    };
    (@type Count) => { usize };
    (@type Bytes) => { usize };
    (@type Time) => { ::std::time::Duration };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_with_the_largest_unit_that_fits() {
        let check = |limit: Limit, expected: &str| assert_eq!(limit.to_string(), expected);
        check(Limit::Count(4096), "4096");
        check(Limit::Bytes(4 << 20), "4 MiB");
        check(Limit::Bytes(64 << 10), "64 KiB");
        check(Limit::Bytes(1000), "1000 bytes");
        check(Limit::Time(Duration::from_secs(30)), "30 s");
        check(Limit::Time(Duration::from_millis(1500)), "1500 ms");
    }

    #[test]
    fn a_table_has_a_row_per_field() {
        bounds! {
            /// Of a test.
            struct Bounds {
                /// Bytes of a thing.
                thing_bytes: Bytes = 8 << 10, "refused";
                /// For a thing.
                wait: Time = Duration::from_secs(3), "closed";
            }
        }
        assert_eq!(Bounds::default(), Bounds { thing_bytes: 8192, wait: Duration::from_secs(3) });
        let row =
            Bound { name: "wait", value: Limit::Time(Duration::from_secs(2)), above: "closed", doc: "For a thing." };
        assert_eq!(Bounds { wait: Duration::from_secs(2), ..Bounds::default() }.table()[1], row);
    }
}
