/// A whole tensor, dense, in the compute type, as a matrix method sees it.
package struct Whole<T: Real> {
  /// What is transformed in place: gradient, update or parameter.
  package var v: UnsafeMutablePointer<T>
  /// Its companion: the parameter of a gradient, the previous parameter of a parameter.
  package var w: UnsafeMutablePointer<T>
  package var slots: [UnsafeMutablePointer<T>]
  package var shape: Shape
  /// As many bytes as the rule's `workspace` asked for, 64-byte aligned; nobody else uses it meanwhile.
  package var workspace: UnsafeMutableRawPointer
  package var count: Int { shape.count }
  package var rows: Int { shape.rows }
  package var columns: Int { shape.columns }
}

/// A stage that acts on a whole tensor: matrix methods, projections, proxes with norms.
package protocol WholeRule: Sendable {
  static var method: Method { get }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot]
  static func decay(_ h: Hyper) -> Decay
  /// Throws when tensors of this shape are refused, before anything is bound.
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure)
  /// Bytes of scratch memory for a tensor whose elements have `size` bytes. Allocated before the first step, so that
  /// none can fail for it.
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int
  /// A factorisation may fail: the engine then keeps copies, so that a failed step changes nothing.
  static var mayFail: Bool { get }
  /// The same, where it depends on the hyper-parameters.
  static func mayFail(_ h: Hyper) -> Bool
  /// The first slot receives the parameters as they were before the step.
  static var keepsPoint: Bool { get }
  /// It gives evaluation weights.
  static var evaluates: Bool { get }
  init(_ h: Hyper, _ c: StepContext)
  func apply<T: Real>(_ t: Whole<T>) throws(Failure)
  /// Makes the evaluation weights of the parameters in v.
  func evaluate<T: Real>(_ t: Whole<T>) throws(Failure)
}

extension WholeRule {
  package static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { method.slots }
  package static func decay(_ h: Hyper) -> Decay { .none }
  package static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}
  package static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 0 }
  package static var mayFail: Bool { false }
  package static func mayFail(_ h: Hyper) -> Bool { mayFail }
  package static var keepsPoint: Bool { false }
  package static var evaluates: Bool { false }
  package func evaluate<T: Real>(_ t: Whole<T>) throws(Failure) {}
}

package struct WholeKernels: Sendable {
  let slots: @Sendable (Hyper, Shape) -> [Slot]
  let decay: @Sendable (Hyper) -> Decay
  let accepts: @Sendable (Hyper, Shape) throws(Failure) -> Void
  let workspace: @Sendable (Hyper, Shape, Int) -> Int
  let mayFail: @Sendable (Hyper) -> Bool
  let keepsPoint: Bool
  typealias Call<T: Real> = @Sendable (Hyper, StepContext, Whole<T>) throws(Failure) -> Void
  let f32: Call<Float>
  let f64: Call<Double>
  /// The evaluation weights, where it gives some.
  let evaluate: (f32: Call<Float>, f64: Call<Double>)?
}

@inline(never)
package func kernels<R: WholeRule>(_: R.Type) -> WholeKernels {
  WholeKernels(
    slots: { R.slots($0, $1) }, decay: { R.decay($0) },
    accepts: { (h, s) throws(Failure) in try R.accepts(h, s) }, workspace: { R.workspace($0, $1, $2) },
    mayFail: { R.mayFail($0) }, keepsPoint: R.keepsPoint,
    f32: { (h, c, w) throws(Failure) in try R(h, c).apply(w) },
    f64: { (h, c, w) throws(Failure) in try R(h, c).apply(w) },
    evaluate: R.evaluates
      ? (
        { (h, c, w) throws(Failure) in try R(h, c).evaluate(w) },
        { (h, c, w) throws(Failure) in try R(h, c).evaluate(w) }
      ) : nil)
}

extension WholeKernels {
  func binding(_ inner: Hyper) -> WholeKernels {
    WholeKernels(
      slots: { [slots] _, s in slots(inner, s) }, decay: { [decay] _ in decay(inner) },
      accepts: { [accepts] (_, s) throws(Failure) in try accepts(inner, s) },
      workspace: { [workspace] _, s, n in workspace(inner, s, n) }, mayFail: { [mayFail] _ in mayFail(inner) },
      keepsPoint: keepsPoint,
      f32: { [f32] (_, c, w) throws(Failure) in try f32(inner, c, w) },
      f64: { [f64] (_, c, w) throws(Failure) in try f64(inner, c, w) },
      evaluate: nil)
  }
}
