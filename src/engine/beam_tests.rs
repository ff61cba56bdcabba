//! The search against transformers' own way of writing it down, and against trying everything.

use proptest::prelude::*;

use super::*;

const VOCAB: u32 = 12;

/// The log-probabilities after these tokens: any, but always the same.
pub fn row(salt: u64, tokens: &[u32]) -> Vec<f32> {
    let mut state = tokens.iter().fold(salt, |state, &token| {
        (state ^ u64::from(token) ^ 0x9e37_79b9).wrapping_mul(0x2545_f491_4f6c_dd1d)
    });
    let logits: Vec<f32> = (0..VOCAB)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0
        })
        .collect();
    let sum: f32 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| x - sum.ln()).collect()
}

/// The `n` most likely tokens, as a row says them.
pub fn ranked(logprobs: &[f32], n: usize) -> Vec<TokenLogprob> {
    let mut all: Vec<TokenLogprob> = (0..)
        .zip(logprobs)
        .map(|(id, &logprob)| TokenLogprob { id, logprob })
        .collect();
    all.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.id.cmp(&b.id)));
    all.truncate(n);
    all
}

#[derive(Debug, Clone)]
struct Case {
    params: BeamParams,
    stop: StopConditions,
    salt: u64,
}

/// Tokens and score of each beam returned.
type Results = Vec<(Vec<u32>, f32)>;

/// Runs a search to its end.
fn search(case: &Case) -> Vec<Hypothesis> {
    let max_tokens = case.stop.max_tokens;
    let search = BeamSearch::new(case.params, case.stop.clone(), max_tokens, 2);
    run(search, |tokens| row(case.salt, tokens))
}

/// Runs a search to its end, with these log-probabilities.
pub fn run(mut search: BeamSearch, row: impl Fn(&[u32]) -> Vec<f32>) -> Vec<Hypothesis> {
    let mut live: Vec<Vec<u32>> = vec![Vec::new()];
    loop {
        let wanted = search.wanted();
        let rows: Vec<_> = live
            .iter()
            .map(|tokens| ranked(&row(tokens), wanted))
            .collect();
        match search.advance(&rows) {
            Advance::Done(hypotheses) => return hypotheses,
            Advance::Continue(branches) => {
                let next = branches.iter().map(|branch| {
                    let mut tokens = live[branch.parent].clone();
                    tokens.push(branch.token);
                    tokens
                });
                live = next.collect();
                for (rank, tokens) in live.iter().enumerate() {
                    assert_eq!(search.tokens(rank), *tokens);
                }
            }
        }
    }
}

fn results(hypotheses: &[Hypothesis]) -> Results {
    let ids = |h: &Hypothesis| h.tokens.iter().map(|t| t.token.id).collect();
    hypotheses.iter().map(|h| (ids(h), h.score)).collect()
}

/// Indices of the `k` greatest, the first of equals first.
fn topk(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(k);
    order
}

/// `_beam_search` of transformers line by line, over whole rows, with its -1e9 for what is not
/// there.
fn transformers(case: &Case) -> Results {
    let Case { params, stop, salt } = case;
    let ends = [&stop.end_of_text[..], &stop.stop_tokens[..]].concat();
    let width = params.width;
    let beams_to_keep = 2.max(1 + ends.len()) * width;
    let mut running = vec![(Vec::new(), 0.0f32)];
    running.resize(width, (Vec::new(), -1e9));
    let mut finished: Vec<(Vec<u32>, f32, bool)> = vec![(Vec::new(), -1e9, false); width];
    let mut cur_len = 0;
    loop {
        let mut accumulated: Vec<f32> = Vec::new();
        for (tokens, score) in &running {
            accumulated.extend((0..).zip(row(*salt, tokens)).map(|(id, logprob)| {
                let masked = cur_len < stop.min_tokens && ends.contains(&id);
                score + if masked { f32::NEG_INFINITY } else { logprob }
            }));
        }
        let chosen = topk(&accumulated, beams_to_keep);
        let scores: Vec<f32> = chosen.iter().map(|&at| accumulated[at]).collect();
        let sequences: Vec<Vec<u32>> = chosen
            .iter()
            .map(|&at| {
                let tokens = &running[at / VOCAB as usize].0;
                [&tokens[..], &[(at % VOCAB as usize) as u32]].concat()
            })
            .collect();
        let hits: Vec<bool> = sequences
            .iter()
            .map(|s| s.len() >= stop.max_tokens || ends.contains(&s[s.len() - 1]))
            .collect();
        let penalized: Vec<f32> = (0..beams_to_keep)
            .map(|i| scores[i] + if hits[i] { -1e9 } else { 0.0 })
            .collect();
        running = topk(&penalized, width)
            .into_iter()
            .map(|i| (sequences[i].clone(), penalized[i]))
            .collect();
        let penalty = |length: usize| (length as f64).powf(params.length_penalty) as f32;
        for i in 0..beams_to_keep {
            let just_finished = hits[i] && i < width;
            let score = scores[i] / penalty(cur_len + 1) + if just_finished { 0.0 } else { -1e9 };
            finished.push((sequences[i].clone(), score, just_finished));
        }
        let best = topk(&finished.iter().map(|f| f.1).collect::<Vec<_>>(), width);
        finished = best.into_iter().map(|i| finished[i].clone()).collect();
        cur_len += 1;
        let never = params.early_stopping == EarlyStopping::Never && params.length_penalty > 0.0;
        let length = if never { stop.max_tokens } else { cur_len };
        let best_possible = running[0].1 / penalty(length);
        let least = finished.iter().map(|f| f.1).fold(f32::INFINITY, f32::min);
        let improvement_possible = finished
            .iter()
            .any(|f| best_possible > if f.2 { least } else { -1e9 });
        let all_finished = finished.iter().all(|f| f.2);
        let exists_open_beam = !(all_finished && params.early_stopping == EarlyStopping::Always);
        let valid_continuations = !hits.iter().all(|&hit| hit);
        if !(improvement_possible && exists_open_beam && valid_continuations) {
            break;
        }
    }
    finished.truncate(params.returned);
    finished
        .into_iter()
        .map(|(s, score, _)| (s, score))
        .collect()
}

fn early_stopping() -> impl Strategy<Value = EarlyStopping> {
    prop_oneof![
        Just(EarlyStopping::Always),
        Just(EarlyStopping::Heuristic),
        Just(EarlyStopping::Never),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    // Together at most VOCAB candidates.
    let shape = prop_oneof![(1usize..=5, 0usize..=1), (1usize..=3, 2usize..=2)];
    let penalty = prop_oneof![Just(0.0), Just(1.0), -1.5..3.0];
    let lengths = (1usize..12, 0usize..4);
    (
        shape,
        1usize..=5,
        penalty,
        early_stopping(),
        lengths,
        any::<u64>(),
    )
        .prop_map(
            |(
                (width, ends),
                returned,
                length_penalty,
                early_stopping,
                (max_tokens, least),
                salt,
            )| {
                Case {
                    params: BeamParams {
                        width,
                        returned: returned.min(width),
                        length_penalty,
                        early_stopping,
                    },
                    stop: StopConditions {
                        max_tokens,
                        min_tokens: least.min(max_tokens),
                        end_of_text: (3..4).take(ends).collect(),
                        stop_tokens: (7..8).take(ends.saturating_sub(1)).collect(),
                        stop_strings: Vec::new(),
                    },
                    salt,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_beams_are_those_of_transformers(case in case()) {
        let found = results(&search(&case));
        prop_assert_eq!(found, transformers(&case));
    }

    #[test]
    fn beams_are_returned_best_first_with_the_reasons_they_ended(case in case()) {
        let found = search(&case);
        prop_assert_eq!(found.len(), case.params.returned);
        prop_assert!(found.is_sorted_by(|a, b| a.score >= b.score));
        for beam in &found {
            let (last, earlier) = beam.tokens.split_last().unwrap();
            prop_assert!(earlier.iter().all(|token| token.finish.is_none()));
            let reason = match last.token.id {
                3 if !case.stop.end_of_text.is_empty() => FinishReason::EndOfText,
                7 if !case.stop.stop_tokens.is_empty() => FinishReason::Stop,
                _ => FinishReason::Length,
            };
            prop_assert_eq!(last.finish, Some(reason));
            if reason == FinishReason::Length {
                prop_assert_eq!(beam.tokens.len(), case.stop.max_tokens);
            } else {
                prop_assert!(beam.tokens.len() > case.stop.min_tokens);
            }
            let mut before = Vec::new();
            for token in &beam.tokens {
                let logprobs = row(case.salt, &before);
                prop_assert_eq!(token.token.logprob, logprobs[token.token.id as usize]);
                prop_assert_eq!(&token.top, &ranked(&logprobs, 2));
                before.push(token.token.id);
            }
        }
    }

    /// As wide as there are texts, it is no heuristic any more.
    #[test]
    fn a_search_that_keeps_everything_finds_the_most_likely_texts(salt: u64) {
        let everything = VOCAB.pow(2) as usize;
        let case = Case {
            params: BeamParams {
                width: everything,
                returned: 4,
                length_penalty: 0.0,
                early_stopping: EarlyStopping::Never,
            },
            stop: StopConditions {
                max_tokens: 3,
                min_tokens: 0,
                end_of_text: Vec::new(),
                stop_tokens: Vec::new(),
                stop_strings: Vec::new(),
            },
            salt,
        };
        let mut all: Results = Vec::new();
        for text in 0..VOCAB.pow(3) {
            let ids = [text / VOCAB.pow(2), text / VOCAB % VOCAB, text % VOCAB];
            let sum = (0..3).map(|n| row(salt, &ids[..n])[ids[n] as usize]).sum();
            all.push((ids.to_vec(), sum));
        }
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        let scores = |results: &[(Vec<u32>, f32)]| results.iter().map(|r| r.1).collect::<Vec<_>>();
        prop_assert_eq!(scores(&results(&search(&case))), scores(&all[..4]));
    }
}

#[test]
fn of_equal_beams_the_first_parent_and_the_lower_token_go_first() {
    let params = BeamParams {
        width: 2,
        returned: 2,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
    };
    let stop = StopConditions {
        max_tokens: 2,
        min_tokens: 0,
        end_of_text: Vec::new(),
        stop_tokens: Vec::new(),
        stop_strings: Vec::new(),
    };
    let mut search = BeamSearch::new(params, stop, 2, 0);
    let even: Vec<TokenLogprob> = (0..4)
        .map(|id| TokenLogprob { id, logprob: -1.5 })
        .collect();
    let branches = [(0, 0), (0, 1)].map(|(parent, token)| Branch { parent, token });
    let advance = search.advance(std::slice::from_ref(&even));
    assert_eq!(advance, Advance::Continue(branches.to_vec()));
    let Advance::Done(found) = search.advance(&[even.clone(), even]) else {
        panic!("two tokens are all");
    };
    assert_eq!(results(&found), [(vec![0, 0], -1.5), (vec![0, 1], -1.5)]);
}
