/// A tensor that is several matrices: stacked along leading axes, or the rows of one projection that are queries, keys
/// and values, or heads. A rule that sees one matrix is given one after the other, each with its part of the state.
struct Blocks {
  let count: Int
  /// The shape of each.
  let shape: Shape
  /// Nobody has cut it.
  let isWhole: Bool

  /// Nobody asks for any; the three come last (names are not looked up for every small tensor of a step).
  static func areNone(_ h: Hyper) -> Bool {
    let x = h.numbers, k = x.count - 3
    return k >= 0 && x[k] == 0 && x[k + 1] == 1 && x[k + 2] == 1
  }

  init(_ h: Hyper, _ whole: Shape, _ method: String) throws(Failure) {
    let stacked = h.integer("batch_dims"), parts = h.integer("split"), heads = h.integer("heads")
    isWhole = Blocks.areNone(h)
    if isWhole {
      (count, shape) = (1, whole)
      return
    }
    guard whole.ndim > stacked else {
      throw Failure(
        Status.shape,
        "\(method): batch_dims=\(stacked) leaves no matrix of a tensor of shape \(whole.text)")
    }
    var dimensions = Array(whole.dimensions[stacked...])
    let (cuts, tooMany) = parts.multipliedReportingOverflow(by: heads)
    guard !tooMany, dimensions[0] % cuts == 0 else {
      throw Failure(
        Status.shape,
        "\(method): \(dimensions[0]) rows are not \(parts) times \(heads) (`split`, `heads`) blocks of equal length")
    }
    dimensions[0] /= cuts
    count = whole.dimensions[..<stacked].reduce(cuts, &*)
    shape = Shape(dimensions: dimensions)
  }
}

extension Parameter {
  /// For `InBlocks`.
  public static let blocks: [Parameter] = [
    .integer("batch_dims", 0, .within(0, 62), "leading axes along which matrices are stacked", live: false),
    .integer(
      "split", 1, .atLeast(1), "equal parts of the rows that are matrices: 3 of a fused query, key and value",
      live: false),
    .integer("heads", 1, .atLeast(1), "heads in each of these parts, each a matrix", live: false),
  ]
}

/// A rule for one matrix that has `Parameter.blocks`, last of all.
public protocol InBlocks: WholeRule {}
extension InBlocks {
  public static var registered: Registered {
    Registered(method: method, component: .whole(kernels(Self.self).inBlocks(method.name)))
  }
}

extension WholeKernels {
  /// The same, block by block. (Rules with evaluation weights of their own have no blocks.)
  @usableFromInline func inBlocks(_ method: String) -> WholeKernels {
    let one = self
    // (a tensor that does not fit was refused when it was bound)
    @Sendable func blocks(_ h: Hyper, _ s: Shape) -> Blocks? { try? Blocks(h, s, method) }
    return WholeKernels(
      slots: { h, s in
        guard let b = blocks(h, s), !b.isWhole else { return one.slots(h, s) }
        return one.slots(h, b.shape).map { slot in
          var all = slot
          all.count = slot.count.map { $0 &* b.count }
          return all
        }
      }, scalars: scalars, decay: decay,
      accepts: { (h, s) throws(Failure) in try one.accepts(h, try Blocks(h, s, method).shape) },
      workspace: { h, s, n in one.workspace(h, blocks(h, s)?.shape ?? s, n) },
      grain: { h, s in blocks(h, s)?.isWhole ?? false ? one.grain(h, s) : nil },
      mayFail: mayFail, place: place, newDecay: newDecay, gathers: gathers, gather: gather, traits: traits,
      f32: { (h, c, w) throws(Failure) in
        if Blocks.areNone(h) { return try one.f32(h, c, w) }
        let cut = Cut(try Blocks(h, w.shape, method), h, one)
        for k in 0..<cut.blocks.count { try one.f32(h, cut.context(c), cut.part(k, w)) }
      },
      f64: { (h, c, w) throws(Failure) in
        if Blocks.areNone(h) { return try one.f64(h, c, w) }
        let cut = Cut(try Blocks(h, w.shape, method), h, one)
        for k in 0..<cut.blocks.count { try one.f64(h, cut.context(c), cut.part(k, w)) }
      }, evaluate: nil)
  }
}

/// A tensor in its blocks.
private struct Cut {
  let blocks: Blocks
  /// How many numbers each slot of a block has.
  private let lengths: [Int]

  init(_ blocks: Blocks, _ h: Hyper, _ one: WholeKernels) {
    self.blocks = blocks
    lengths = one.slots(h, blocks.shape).map { $0.elements(of: blocks.shape.count) }
  }
  func context(_ c: StepContext) -> StepContext {
    var own = c
    (own.ndim, own.count) = (blocks.shape.ndim, blocks.shape.count)
    (own.rows, own.columns) = (blocks.shape.rows, blocks.shape.columns)
    return own
  }
  func part<T: Real>(_ k: Int, _ w: Whole<T>) -> Whole<T> {
    let n = blocks.shape.count, state = w.slots.indices.map { w.slots[$0] + k &* lengths[$0] }
    return Whole(v: w.v + k &* n, w: w.w + k &* n, slots: state, shape: blocks.shape, workspace: w.workspace)
  }
}
