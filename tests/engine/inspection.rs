//! Inspections: the references' values, whatever runs beside them and however they are paged.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use skald::engine::{EngineConfig, EngineHandle, Inspection};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::{
    AttentionWanted, EmbeddingWanted, InspectionWanted, NeuronsWanted, RequestDraft, RequestId,
    SamplingOverrides, SamplingWanted,
};

use crate::model::{admit, engine, finish, gpt2_in, idle, prompt, run, sampled};

const LAYERS: usize = 6;
const HEADS: usize = 5;
const TOLERANCE: f32 = 2e-4;

fn references() -> HashMap<String, Tensor> {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/fairy-tales/reference.safetensors"
    );
    candle_core::safetensors::load(file, &Device::Cpu).expect("the reference tensors")
}

fn reference_ids(references: &HashMap<String, Tensor>) -> Vec<u32> {
    let ids = references["case0.ids"].to_dtype(DType::U32).expect("ids");
    ids.to_vec1().expect("ids")
}

/// Returns a request for every stage at some positions.
fn everything(rows: Range<usize>) -> InspectionWanted {
    InspectionWanted {
        rows,
        embedding: Some(EmbeddingWanted {
            nearest: 3,
            values: true,
        }),
        residual: true,
        attention: Some(AttentionWanted {
            layers: (0..LAYERS).collect(),
            heads: (0..HEADS).collect(),
            map: false,
            qkv: true,
        }),
        neurons: Some(NeuronsWanted {
            layers: vec![1, 4],
            top: 3,
        }),
        lens: Some(5),
        logits: true,
        sampling: Some(SamplingWanted::default()),
    }
}

/// Returns a draft that inspects the pass over `ids`.
fn draft(ids: &[u32], wanted: InspectionWanted) -> RequestDraft {
    RequestDraft {
        seed: Some(7),
        ..RequestDraft::inspection(RequestId::random(), ids.to_vec(), wanted)
    }
}

async fn inspect(engine: &EngineHandle, ids: &[u32], wanted: InspectionWanted) -> Inspection {
    let outcome = run(engine, draft(ids, wanted)).await;
    assert!(outcome.tokens.is_empty());
    let mut found = *outcome.prompt.inspection.expect("asked for");
    // Times are not part of the result.
    found.costs.clear();
    found
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (n, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference < TOLERANCE,
            "{what}, value {n}: {found} for {expected}"
        );
    }
}

#[tokio::test]
async fn attention_residual_stream_and_logits_are_the_references() {
    let references = references();
    let ids = reference_ids(&references);
    let n = ids.len();
    let engine = engine(EngineConfig::default());
    let found = inspect(&engine, &ids, everything(0..n)).await;

    assert_eq!(found.attention.len(), LAYERS * HEADS);
    let attention = references["case0.attn"].flatten(0, 1).expect("heads");
    let attention: Vec<Vec<Vec<f32>>> = attention.to_vec3().expect("weights");
    for (head, expected) in found.attention.iter().zip(attention) {
        let triangle = expected.iter().enumerate().flat_map(|(p, row)| &row[..=p]);
        let triangle: Vec<f32> = triangle.copied().collect();
        let what = format!("layer {}, head {}", head.layer, head.head);
        assert_near(&head.weights, &triangle, &what);
    }

    let hidden: Vec<Vec<Vec<f32>>> = references["case0.hidden"].to_vec3().expect("states");
    let norms = |rows: &[Vec<f32>]| -> Vec<f32> {
        let norm = |row: &Vec<f32>| row.iter().map(|x| x * x).sum::<f32>().sqrt();
        rows.iter().map(norm).collect()
    };
    let residual = found.residual.as_ref().expect("asked for");
    // The last published state is the one after `ln_f`.
    for (state, expected) in residual.states.iter().zip(&hidden).take(LAYERS) {
        for (found, expected) in state.iter().zip(norms(expected)) {
            assert!(
                (found - expected).abs() < 1e-3 * expected,
                "{found} for {expected}"
            );
        }
    }
    let embedding = found.embedding.as_ref().expect("asked for");
    let positions = embedding.positions.as_ref().expect("GPT-2 has them");
    let sums = embedding.tokens.iter().zip(positions).map(|(a, b)| a + b);
    assert_near(&sums.collect::<Vec<_>>(), &hidden[0].concat(), "embedding");

    let logits: Vec<Vec<f32>> = references["case0.logits"].to_vec2().expect("logits");
    assert_near(
        found.logits.as_ref().expect("asked for"),
        &logits[n - 1],
        "logits",
    );
    for (row, (top, logits)) in found.lens[LAYERS].top.iter().zip(&logits).enumerate() {
        let highest = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - highest).exp()).sum();
        assert_eq!(top.len(), 5);
        for &(id, probability) in top {
            let expected = logits[id as usize] - highest - sum.ln();
            assert!((probability.ln() - expected).abs() < 4e-4, "row {row}");
        }
    }
}

#[tokio::test]
async fn what_is_written_adds_up_and_neurons_are_sorted_by_what_they_write() {
    let engine = engine(EngineConfig::default());
    let found = inspect(&engine, &prompt(40, 3), everything(30..40)).await;
    for neurons in &found.neurons {
        assert_eq!((neurons.active.len(), neurons.strongest.len()), (10, 10));
        for (row, strongest) in neurons.strongest.iter().enumerate() {
            assert!(strongest.is_sorted_by(|a, b| a.write >= b.write));
            assert!(strongest.iter().all(|neuron| neuron.promotes.len() == 4));
            assert!(neurons.active[row] > 0 && neurons.active[row] < 1280);
        }
    }
    let heads = found.attention.iter();
    for head in heads {
        let mut rest = &head.weights[..];
        for position in 30..40 {
            let (row, others) = rest.split_at(position + 1);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            rest = others;
        }
        assert!(rest.is_empty());
        let qkv = head.qkv.as_ref().expect("asked for");
        assert_eq!((qkv.q.len(), qkv.k.len(), qkv.v.len()), (640, 640, 640));
    }
    let nearest = &found.embedding.expect("asked for").nearest;
    assert!(
        nearest
            .iter()
            .all(|row| row.len() == 3 && row.is_sorted_by(|a, b| a.1 >= b.1))
    );
}

/// Compared whole: the bits of every value.
#[tokio::test]
async fn pages_chunks_and_neighbours_change_nothing() {
    for (dtype, kv_dtype) in [
        (WeightDtype::F32, KvDtype::F32),
        (WeightDtype::Q8, KvDtype::Bf16),
    ] {
        let config = EngineConfig {
            kv_dtype,
            ..EngineConfig::default()
        };
        let start = |config| skald::engine::start(gpt2_in(dtype), config).expect("it starts");
        let ids = prompt(150, 4);
        let whole = inspect(&start(config.clone()), &ids, everything(90..150)).await;

        // A server that has the prefix, and streams beside it.
        let busy = start(EngineConfig {
            max_step_tokens: 40,
            ..config.clone()
        });
        let alone = run(&busy, sampled(&prompt(60, 9), 120, 1)).await;
        run(&busy, sampled(&ids[..100], 1, 1)).await;
        let streams = (0..3).map(|_| run(&busy, sampled(&prompt(60, 9), 120, 1)));
        let streams = futures_util::future::join_all(streams);
        let pages = async {
            let first = inspect(&busy, &ids, everything(90..150)).await;
            let last = inspect(&busy, &ids, everything(140..150)).await;
            (first, last)
        };
        let (streams, (page, last)) = tokio::join!(streams, pages);
        assert!(page == whole, "{dtype:?}");
        for stream in streams {
            assert_eq!(stream.tokens, alone.tokens);
        }
        assert_eq!(last.logits, whole.logits);
        assert_eq!(last.sampling, whole.sampling);
        assert_eq!(last.lens[3].top[..], whole.lens[3].top[50..]);
        let states =
            |found: &Inspection| found.residual.as_ref().expect("asked for").states[4].clone();
        assert_eq!(states(&last)[..], states(&whole)[50..]);
        idle(&busy).await;
    }
}

#[tokio::test]
async fn a_map_has_every_row_and_the_other_stages_only_those_asked_for() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(70, 5);
    let rows = inspect(&engine, &ids, everything(60..70)).await;
    let mut wanted = everything(60..70);
    wanted.attention = Some(AttentionWanted {
        layers: vec![4],
        heads: vec![2],
        map: true,
        qkv: false,
    });
    let map = inspect(&engine, &ids, wanted).await;
    let [head] = &map.attention[..] else {
        panic!("one head");
    };
    assert_eq!(head.weights.len(), 70 * 71 / 2);
    let same = &rows.attention[4 * HEADS + 2];
    assert_eq!(head.weights[60 * 61 / 2..], same.weights[..]);
    assert_eq!(map.lens, rows.lens);
    assert_eq!(map.residual, rows.residual);
    assert_eq!(map.embedding, rows.embedding);
}

/// With every filter on.
#[tokio::test]
async fn the_traced_token_is_the_one_that_is_generated() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(25, 6);
    let with = |draft: RequestDraft| RequestDraft {
        sampling: SamplingOverrides {
            temperature: Some(0.9),
            top_k: Some(50),
            top_p: Some(0.9),
            min_p: Some(0.01),
            typical_p: Some(0.95),
            repetition_penalty: Some(1.2),
            ..SamplingOverrides::default()
        },
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        seed: Some(11),
        ignore_end_of_text: true,
        ..draft
    };
    let text = run(&engine, with(sampled(&ids, 20, 11))).await.ids();
    for n in [0, 1, 7, 19] {
        let so_far = [&ids[..], &text[..n]].concat();
        let wanted = InspectionWanted {
            sampling: Some(SamplingWanted {
                sampled: n,
                ..SamplingWanted::default()
            }),
            ..everything(so_far.len() - 1..so_far.len())
        };
        let outcome = run(&engine, with(draft(&so_far, wanted))).await;
        let found = outcome.prompt.inspection.expect("asked for");
        let sampling = found.sampling.expect("asked for");
        assert_eq!(sampling.token, text[n], "token {n}");
        assert!(sampling.random.is_some());
    }
}

#[tokio::test]
async fn an_inspection_whose_client_leaves_frees_everything() {
    let engine = engine(EngineConfig::default());
    let request = admit(draft(&prompt(900, 1), everything(0..64)));
    drop(engine.submit(request).await.expect("accepted"));
    idle(&engine).await;
    let request = admit(draft(&prompt(100, 1), everything(90..100)));
    let outcome = finish(engine.submit(request).await.expect("accepted")).await;
    assert!(outcome.expect("it ends").prompt.inspection.is_some());
    idle(&engine).await;
}
