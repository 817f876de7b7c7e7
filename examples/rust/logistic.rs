//! Logistic regression on a real data set with SAM, in Rust.
//!
//! Reads examples/data/breast_cancer.csv, trains on four fifths of the rows and tests on the rest.  Checks on its way
//! what the wrapper promises: errors are values, a closure that fails or panics leaves the weights as they were, and a
//! run that is taken up from its saved state comes to the same bits.
//!
//!     make -C examples/rust run

mod thalweg;

use std::panic::{catch_unwind, set_hook, take_hook, AssertUnwindSafe};
use thalweg::{Error, Optimizer};

const FEATURES: usize = 30;
const STEPS: usize = 200;
const SENTENCE: &str = "sam(0.05) | adamw(lr=warmup_cosine(peak=0.05, warmup=20, total=200))";

type Rows = Vec<(Vec<f64>, f64)>;

/// Every fifth row goes to the test set; features are shifted and scaled by those of the training set.
fn read(path: &str) -> Result<(Rows, Rows), Box<dyn std::error::Error>> {
    let (mut training, mut test) = (Rows::new(), Rows::new());
    for (i, line) in std::fs::read_to_string(path)?.lines().skip(1).enumerate() {
        let mut x = line.split(',').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let y = x.pop().filter(|_| x.len() == FEATURES).ok_or("a row of the data is not understood")?;
        if i % 5 == 0 { &mut test } else { &mut training }.push((x, y));
    }
    for j in 0..FEATURES {
        let n = training.len() as f64;
        let mean = training.iter().map(|(x, _)| x[j]).sum::<f64>() / n;
        let deviation = (training.iter().map(|(x, _)| (x[j] - mean).powi(2)).sum::<f64>() / n).sqrt();
        for (x, _) in training.iter_mut().chain(&mut test) {
            x[j] = (x[j] - mean) / deviation;
        }
    }
    Ok((training, test))
}

fn logit(w: &[f32], b: &[f32], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>() + f64::from(b[0])
}

/// The mean loss; writes its gradient.
fn loss(rows: &Rows, w: &[&[f32]], g: &mut [&mut [f32]]) -> f64 {
    let (mut loss, mut dw, mut db, scale) = (0.0, [0.0; FEATURES], 0.0, 1.0 / rows.len() as f64);
    for (x, y) in rows {
        let z = logit(w[0], w[1], x);
        loss += scale * (z.max(0.0) - z * y + (-z.abs()).exp().ln_1p());
        let dz = scale * (1.0 / (1.0 + (-z).exp()) - y);
        dw.iter_mut().zip(x).for_each(|(d, x)| *d += dz * x);
        db += dz;
    }
    g[0].iter_mut().zip(dw).for_each(|(g, d)| *g = d as f32);
    g[1][0] = db as f32;
    loss
}

fn accuracy(rows: &Rows, optimizer: &Optimizer) -> f64 {
    let (w, b) = (optimizer.parameter(0), optimizer.parameter(1));
    rows.iter().filter(|(x, y)| (logit(w, b, x) > 0.0) == (*y > 0.5)).count() as f64 / rows.len() as f64
}

fn start(from: Option<&Optimizer>) -> Result<Optimizer, Error> {
    let values = |i: usize, n: usize| from.map_or(vec![0.0; n], |other| other.parameter(i).to_vec());
    Optimizer::new(SENTENCE, vec![(values(0, FEATURES), vec![1, FEATURES as i64]), (values(1, 1), vec![1])])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or("../data/breast_cancer.csv".into());
    let (training, test) = read(&path)?;

    let refused = Optimizer::new("adamm(lr=0.1)", vec![]).err().ok_or("a method that there is not was taken")?;
    println!("{refused}\n");
    assert!(refused.status == -11 && refused.message.contains("adam"));

    let mut optimizer = start(None)?;
    let mut requests = 0;
    for step in 0..STEPS / 2 {
        let mut last = 0.0;
        optimizer.step(|_, w, g| {
            requests += 1;
            last = loss(&training, w, g);
            Ok(last)
        })?;
        if step % 25 == 0 {
            println!("step {step:3}   loss uphill {last:.4}   next lr {:.4}", optimizer.get("adamw.lr")?);
        }
    }
    assert_eq!(requests, STEPS, "SAM asks twice a step");

    // A closure that fails, and one that panics, at the second request: uphill of the weights.
    let before = optimizer.parameter(0).to_vec();
    let failed = optimizer.step(|request, w, g| {
        if request.pass == 1 {
            assert!(w[0] != before);
            return Err(Error { status: -3, message: "no more data".into() });
        }
        Ok(loss(&training, w, g))
    });
    assert!(failed.is_err_and(|error| error.message == "no more data") && optimizer.parameter(0) == before);
    let hook = take_hook();
    set_hook(Box::new(|_| ()));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        optimizer.step(|request, w, g| {
            assert!(request.pass == 0, "no more data");
            Ok(loss(&training, w, g))
        })
    }));
    set_hook(hook);
    assert!(panicked.is_err() && optimizer.parameter(0) == before);

    // The second half, twice: with the same state in another optimizer, on another thread.
    let saved = optimizer.save()?;
    assert!(start(None)?.load(&saved[1..]).is_err());
    let mut resumed = start(Some(&optimizer))?;
    resumed.load(&saved)?;
    let finish = |optimizer: &mut Optimizer| -> Result<(), Error> {
        (STEPS / 2..STEPS).try_for_each(|_| optimizer.step(|_, w, g| Ok(loss(&training, w, g))).map(|_| ()))
    };
    let resumed = std::thread::scope(|scope| scope.spawn(move || finish(&mut resumed).map(|_| resumed)).join());
    let resumed = resumed.map_err(|_| "the other thread panicked")??;
    finish(&mut optimizer)?;
    let same = resumed.parameter(0) == optimizer.parameter(0) && resumed.parameter(1) == optimizer.parameter(1);
    println!("accuracy: {:.1} % in the test; the resumed run has {}", 100.0 * accuracy(&test, &optimizer),
             if same { "the same bits" } else { "OTHER BITS" });
    assert!(same && accuracy(&test, &optimizer) > 0.95);
    Ok(())
}
