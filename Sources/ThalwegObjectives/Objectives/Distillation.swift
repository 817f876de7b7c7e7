import Glibc
import ThalwegCore

/// T²·KL(softmax(t/T) ‖ softmax(s/T)) of one row; `out` takes its derivative by s.
private func divergence<T: Real>(
  _ s: UnsafePointer<T>, _ t: UnsafePointer<T>, _ classes: Int, _ temperature: Double, _ weight: Double,
  into out: UnsafeMutablePointer<T>?
) -> Double {
  let student = Softmax.logSum(s, classes, temperature: temperature)
  let teacher = Softmax.logSum(t, classes, temperature: temperature)
  var sum = 0.0
  for c in 0..<classes {
    let lq = Double(s[c]) / temperature - student, lp = Double(t[c]) / temperature - teacher, p = exp(lp)
    if p > 0 || p.isNaN { sum += p * (lp - lq) }
    out?[c] = T(weight * temperature * (exp(lq) - p))
  }
  return weight * temperature * temperature * sum
}

/// Knowledge distillation: the divergence of a student's softened predictions from a teacher's.
///
///     p = softmax(t/T), q = softmax(s/T)     value = T²·mean Σ_c p·(log p − log q)     ∂s = T·(q − p)/n
///
/// s and t are (..., C); the mean is over rows.
/// Differs  torch's kl_div(reduction="batchmean")·T² is the same; its "mean" divides by n·C.
/// Source   Hinton et al., 2015, arXiv:1503.02531.
struct DistillationKL: Objective {
  static let method = Method(
    "distillation_kl", .objective, "The divergence of a student's softened predictions from a teacher's.",
    rule: """
      p = softmax(t/T), q = softmax(s/T);  value = T^2*mean sum_c p*(log p - log q)
      gradient for s: T*(q - p)/n
      """,
    source: "Hinton et al., 2015, arXiv:1503.02531",
    parameters: [.number("temperature", 1, .above(0), "T, softens both predictions"), Reduction.parameter],
    inputs: [.variable("s", "..., C", "logits of the student"), .constant("t", "..., C", "logits of the teacher")])
  let temperature: Double, reduction: Reduction
  init(_ h: Hyper) { (temperature, reduction) = (h.temperature, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let s = try x["s"], t = try x["t"], rows = x.sizes.samples, classes = x.sizes["C"]
    let g = try cache?.keep("s", rows * classes, T.self), weight = reduction.weight(rows)
    return Rows.sum(rows, work: 32 * classes) { i in
      let at = i * classes
      return divergence(s + at, t + at, classes, temperature, weight, into: g.map { $0 + at })
    }
  }
}

/// The trajectory loss of sharpness-aware training for free: predictions should stay near those of some epochs ago.
///
///     p = softmax(past/T), q = softmax(z/T)     value = λ·T²·mean Σ_c p·(log p − log q)     ∂z = λ·T·(q − p)/B
///
/// z is (B, C). Its past comes in one of two ways. `past` (B, C) are the logits of an averaged model on the same rows
/// (λ = 0.8 is usual then). Or `buffer` (B, delay + 1, C) holds what the host remembers of the same samples, `epoch` is
/// the running one: slot (epoch − delay) mod (delay + 1) is the past, and the pull-back gives `buffer_next`, where slot
/// epoch mod (delay + 1) is z. The loss is 0 outside start_epoch < epoch < end_epoch; the buffer turns all the time.
/// Rows with `seen` = 0 have no past and add nothing.
/// Errors   TW_ERROR_NEEDS: not one of past and buffer, or a buffer without its epoch; TW_ERROR_SHAPE: a buffer without
///          delay + 1 slots; TW_ERROR_RANGE: an epoch below 0, `seen` other than 0 and 1.
/// Source   Du et al., 2022, arXiv:2205.14083.
struct SAF: Objective {
  static let method = Method(
    "saf", .objective, "Keeps predictions near those of some epochs ago: sharpness-aware training for free.",
    rule: """
      p = softmax(past/T), q = softmax(z/T);  value = lam*T^2*mean sum_c p*(log p - log q)
      past = slot (epoch - delay) mod (delay + 1) of the buffer; slot epoch mod (delay + 1) <- z
      """,
    source: "Du et al., 2022, arXiv:2205.14083",
    parameters: [
      .number("lam", 0.3, .atLeast(0), "weight"), .number("temperature", 5, .above(0), "T, softens both predictions"),
      .integer("start_epoch", 5, .any, "the loss is 0 up to this epoch"),
      .integer("delay", 3, .within(1, 1e6), "epochs between the logits that are compared"),
      .maybeInteger("end_epoch", .any, "the loss is 0 from this epoch on"),
    ],
    inputs: [
      .variable("z", "B, C", "logits"), .constant("past", "B, C", "logits of an averaged model", optional: true),
      .constant("buffer", "B, S, C", "past logits of the same samples, delay + 1 slots", optional: true),
      .integer("epoch", "", "the running epoch, from 0 on", optional: true),
      .integer("seen", "B", "1 for rows with a past, 0 for others", optional: true),
      .result("buffer_next", "B, S, C", "the buffer with z in it; needs buffer"),
    ])
  let lam: Double, temperature: Double, start: Int, delay: Int, end: Int
  init(_ h: Hyper) {
    (lam, temperature, start, delay) = (h.lam, h.temperature, h.integer("start_epoch"), h.integer("delay"))
    end = h.has("end_epoch") ? h.integer("end_epoch") : Int.max
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], rows = x.sizes["B"], classes = x.sizes["C"], seen = x.optionalIntegers("seen")
    let epoch = x.optionalIntegers("epoch")?.pointee
    if let seen { try Labels.check(seen, rows, either: 0, or: 1, name: "seen") }
    if let epoch, epoch < 0 { throw Failure(Status.range, "`epoch` must be at least 0, got \(epoch)") }
    let active = epoch.map { $0 > start && $0 < end } ?? true
    let g = try cache?.keep("z", rows * classes, T.self)
    var past: UnsafePointer<T>, stride = classes
    switch (x.optional("past"), x.optional("buffer"), epoch) {
    case (let given?, nil, _): past = given
    case (nil, let buffer?, let epoch?):
      let slots = x.sizes["S"]
      guard slots == delay + 1 else {
        throw Failure(Status.shape, "`buffer` must have delay + 1 = \(delay + 1) slots, got \(slots)")
      }
      // epoch − delay ≡ epoch + 1
      (past, stride) = (buffer + (epoch % slots + 1) % slots * classes, slots * classes)
      if let cache {
        let size = rows * stride
        let next = try cache.keep("buffer_next", size, T.self)
        next.update(from: buffer, count: size)
        for i in 0..<rows {
          (next + i * stride + epoch % slots * classes).update(from: z + i * classes, count: classes)
        }
      }
    case (nil, _?, nil): throw Failure(Status.needs, "`buffer` needs the running `epoch`")
    default: throw Failure(Status.needs, "either `past` or `buffer` must be given")
    }
    guard active else { return 0 }
    return Rows.sum(rows, work: 32 * classes) { i in
      if seen?[i] == 0 { return 0 }
      return divergence(
        z + i * classes, past + i * stride, classes, temperature, lam / Double(rows), into: g.map { $0 + i * classes })
    }
  }
}
