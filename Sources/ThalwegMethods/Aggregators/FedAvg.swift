import ThalwegCore

/// Federated averaging: the weighted mean of the participants' parameters, as a pseudo-gradient.
///
///     g = server_lr·(θ − Σ p_i·w_i/Σ p_i)
///
/// The host answers the requests of kind `participant` with the parameters w_i that participant i came to, in the
/// arrays of the gradients. With `sgd(lr=1)` behind it the parameters become the mean; any other rule makes a server
/// optimizer.
/// Errors   a participant with an element that is NaN or infinite is left out, the weights renormalised, and the log
///          says so; none is left: nothing changes.
/// Differs  `period` and `switch` of the card are the clock of `local_sgd`: a step here is a round.
/// Source   McMahan, Moore, Ramage, Hampson and Agüera y Arcas, 2017, arXiv:1602.05629.
struct FedAvg: Source {
  static let method = Method(
    "fedavg", .aggregator, "Federated averaging: the mean of the participants' parameters, as a pseudo-gradient.",
    rule: "g = server_lr*(theta - sum_i p_i*w_i/sum_i p_i), w_i the parameters of participant i",
    source: "McMahan, Moore, Ramage, Hampson, Aguera y Arcas, 2017, arXiv:1602.05629",
    parameters: [
      .integer("participants", 2, .within(1, 1e6), "how many there are", live: false),
      .list("weights", nil, "weight p of each participant, equal when none", optional: true),
      .number("server_lr", 1, .above(0), "what the pseudo-gradient is multiplied by").forAll,
    ],
    slots: [Slot.temporary("drift", "the weighted sum of the differences so far")], requests: "participant",
    validate: { (h) throws(Failure) in
      let p = h.list("weights"), n = h.integer("participants")
      guard p.isEmpty || p.count == n else {
        throw Failure(
          Status.range, "fedavg: `weights` must have one number for each of the \(n) participants, got \(p.count)")
      }
      guard p.isEmpty || (p.allSatisfy { $0 >= 0 && $0.isFinite } && p.contains { $0 > 0 }) else {
        throw Failure(Status.range, "fedavg: `weights` must be at least 0, and one of them above it")
      }
    })

  let count: Int, weights: [Double]
  init(_ h: Hyper) { (count, weights) = (h.integer("participants"), h.list("weights")) }
  var slots: [Slot] { FedAvg.method.slots }
  var scalars: [Scalar] { [Scalar("weight", 0)] }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { Ask(.participant, index: 0, count: count) }
  func most(_ tensors: Int) -> Int { count }
  var kinds: [Request.Kind] { [.participant] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let p = weights.isEmpty ? 1 : weights[phase], before = phase == 0 ? 0 : io.scalar(0)
    let finite = io.sum(NotFinite())[0] == 0
    if !finite { Log.warn("fedavg: participant \(phase) has elements that are NaN or infinite, and was left out") }
    let weight = finite ? p : 0
    // a weight of 0 leaves the sum as it is, whatever the elements are
    if weight > 0 || phase == 0 {
      io.change(Gather(weight: weight, first: phase == 0), slots: [0], parameters: false)
    }
    io.setScalar(0, before + weight)
    if phase + 1 < count { return .ask(Ask(.participant, index: phase + 1, count: count)) }
    let total = io.scalar(0)
    return total > 0 ? .update(io.combination([io.hyper.server_lr / total])) : .nothing
  }

  private struct Gather: ElementOperation {
    let weight: Double, first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let moved = weight == 0 ? L(0) : weight * (x - g)
      s[0] = first ? moved : s[0] + moved
    }
  }
  /// x − x is 0 but for numbers that are none.
  private struct NotFinite: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, L.select(L.equal(g - g, L(0)), L(0), L(1)))
    }
  }
}
