//! Moves numeric bounds of a schema inwards to ones that the grammar library represents exactly.

use serde_json::{Map, Number, Value};

use crate::text::grammar::GrammarError;

/// Floats represent every integer up to this one.
pub(super) const EXACT: i128 = 1 << 53;
/// The least and greatest bound of integers. The library negates the least.
pub(super) const INTEGERS: (i128, i128) = (i64::MIN as i128 + 1024, i64::MAX as i128);
/// From here on an integer has as many digits as the greatest, so it needs a bound on the other
/// side.
const MANY_DIGITS: i128 = 1_000_000_000_000_000_000;

/// A bound in a schema.
#[derive(Debug, Clone)]
struct Bound {
    name: &'static str,
    /// Its value.
    number: Number,
    /// Its value, rounded towards minus infinity.
    floor: i128,
    /// Whether it has a fraction.
    fraction: bool,
    exclusive: bool,
}

impl Bound {
    fn new(name: &'static str, number: &Number, exclusive: bool) -> Option<Self> {
        let integer = number
            .as_i64()
            .map(i128::from)
            .or(number.as_u64().map(i128::from));
        let (floor, fraction) = if let Some(integer) = integer {
            (integer, false)
        } else {
            let value = number.as_f64()?;
            // The conversion saturates far out of range.
            (value.floor() as i128, value.fract() != 0.0)
        };
        Some(Self {
            name,
            number: number.clone(),
            floor,
            fraction,
            exclusive,
        })
    }

    /// Returns the bounds of a schema on one side.
    fn of(keywords: &Map<String, Value>, names: [&'static str; 2]) -> Vec<Self> {
        let [inclusive, exclusive] = names;
        // In older drafts a boolean makes the other bound exclusive.
        let is_exclusive = keywords.get(exclusive) == Some(&Value::Bool(true));
        let number = |name: &str| match keywords.get(name) {
            Some(Value::Number(number)) => Some(number),
            _ => None,
        };
        let first = number(inclusive).and_then(|n| Self::new(inclusive, n, is_exclusive));
        let second = number(exclusive).and_then(|n| Self::new(exclusive, n, true));
        first.into_iter().chain(second).collect()
    }

    /// Returns the least integer it allows, as a lower bound.
    fn least(&self) -> i128 {
        let above = self.fraction || self.exclusive;
        self.floor.saturating_add(i128::from(above))
    }

    /// Returns the greatest integer it allows, as an upper bound.
    fn greatest(&self) -> i128 {
        let below = !self.fraction && self.exclusive;
        self.floor.saturating_sub(i128::from(below))
    }

    /// Returns whether floats represent it and the neighbouring integers.
    fn is_held(&self) -> bool {
        self.floor.unsigned_abs() < EXACT.unsigned_abs() - 1
    }
}

const LOWER: [&str; 2] = ["minimum", "exclusiveMinimum"];
const UPPER: [&str; 2] = ["maximum", "exclusiveMaximum"];

/// Adjusts the bounds of integers, up to 64 bits.
pub(super) fn integer_bounds(keywords: &mut Map<String, Value>) -> Result<(), GrammarError> {
    let (lower, upper) = (Bound::of(keywords, LOWER), Bound::of(keywords, UPPER));
    if lower.iter().chain(&upper).all(Bound::is_held) {
        return Ok(());
    }
    let (least, greatest) = INTEGERS;
    let lower = lower.iter().max_by_key(|bound| bound.least());
    let upper = upper.iter().min_by_key(|bound| bound.greatest());
    let refuse = |bound: &Bound| {
        GrammarError(format!(
            "`{}` is {}; integers can be followed from {least} to {greatest}",
            bound.name, bound.number
        ))
    };
    if let Some(bound) = lower.filter(|bound| bound.least() > greatest) {
        return Err(refuse(bound));
    }
    if let Some(bound) = upper.filter(|bound| bound.greatest() < least) {
        return Err(refuse(bound));
    }
    let mut low = lower.map(|bound| held_above(bound.least().max(least)));
    let mut high = upper.map(|bound| held_below(bound.greatest().min(greatest)));
    if let (Some(from), Some(to), Some(low), Some(high)) = (lower, upper, low, high)
        && low > high
        && from.least() <= to.greatest()
    {
        return Err(GrammarError(format!(
            "no integer from {} (`{}`) to {} (`{}`) can be represented: beyond {EXACT} only some can",
            from.least(),
            from.name,
            to.greatest(),
            to.name
        )));
    }
    if high.is_none() && low.is_some_and(|low| low >= MANY_DIGITS) {
        high = Some(greatest);
    }
    if low.is_none() && high.is_some_and(|high| high <= -MANY_DIGITS) {
        low = Some(least);
    }
    set(keywords, LOWER, low);
    set(keywords, UPPER, high);
    Ok(())
}

/// Adjusts the bounds of numbers of any kind, up to where floats represent every integer.
pub(super) fn number_bounds(keywords: &mut Map<String, Value>) -> Result<(), GrammarError> {
    let (lower, upper) = (Bound::of(keywords, LOWER), Bound::of(keywords, UPPER));
    let refuse = |bound: &Bound| {
        Err(GrammarError(format!(
            "`{}` is {}; it can be followed from -{EXACT} to {EXACT} only, or up to 64 bits with `\"type\": \"integer\"`",
            bound.name, bound.number
        )))
    };
    if let Some(bound) = lower
        .iter()
        .find(|bound| !bound.is_held() && bound.floor > 0)
    {
        return refuse(bound);
    }
    if let Some(bound) = upper
        .iter()
        .find(|bound| !bound.is_held() && bound.floor < 0)
    {
        return refuse(bound);
    }
    // A bound beyond the last representable one has no effect.
    for (bounds, names, last) in [(lower, LOWER, -EXACT), (upper, UPPER, EXACT)] {
        if bounds.iter().any(|bound| !bound.is_held()) {
            let narrower = bounds.iter().find(|bound| bound.is_held());
            match narrower {
                // The other of the two is narrower.
                Some(kept) => {
                    let dropped = names.into_iter().filter(|name| *name != kept.name);
                    dropped.for_each(|name| drop(keywords.remove(name)));
                }
                None => set(keywords, names, Some(last)),
            }
        }
    }
    Ok(())
}

/// Replaces the bounds on one side by an inclusive one, if there are any or one is to be set.
fn set(keywords: &mut Map<String, Value>, names: [&'static str; 2], bound: Option<i128>) {
    let Some(bound) = bound.and_then(|bound| i64::try_from(bound).ok()) else {
        return;
    };
    let [inclusive, exclusive] = names;
    keywords.remove(exclusive);
    keywords.insert(inclusive.to_owned(), Value::from(bound));
}

/// Rounds up to the next integer that a float represents; the greatest of 64 bits is unchanged.
fn held_above(integer: i128) -> i128 {
    let float = integer as f64;
    let float = if (float as i128) < integer {
        float.next_up()
    } else {
        float
    };
    (float as i128).min(INTEGERS.1)
}

/// Rounds down to the next integer that a float represents; the greatest of 64 bits is unchanged.
fn held_below(integer: i128) -> i128 {
    if integer == INTEGERS.1 {
        return integer;
    }
    let float = integer as f64;
    let float = if (float as i128) > integer {
        float.next_down()
    } else {
        float
    };
    float as i128
}
