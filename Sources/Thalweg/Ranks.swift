internal import ThalwegCore
internal import ThalwegRunner

extension Optimizer {
  /// What a rank holds of a model that is spread over processes.
  public enum Shards: Int32, Sendable {
    /// Some of the tensors, each whole.
    case tensors = 1
    /// A part of every tensor, bound in the same order on all ranks.
    case elements
  }

  /// Adds `sums` over all ranks and takes the largest of `maxima`, in place and to the same numbers on each of them.
  public typealias Reducer = (
    _ sums: UnsafeMutableBufferPointer<Double>, _ maxima: UnsafeMutableBufferPointer<Double>
  ) throws -> Void

  /// Spreads a model over processes: norms, dot products and counts (clipping, lamb, dog, prodigy, sam) are then those
  /// of the whole, and all ranks skip a step or none does. Ranks step together, with the same sentence and the same
  /// settings; which tensors have gradients must agree. Steps keep copies of what they change.
  ///
  /// The reducer is called by the thread that steps, in the same order on all ranks. Where it throws, the step ends
  /// with `.argument` and nothing is changed; `reducerError` is what it threw. nil ends it.
  ///
  /// Throws `.unsupported` for `elements` where a stage works on whole tensors, `.sequence` within a step.
  public func setReducer(shards: Shards = .tensors, _ reducer: Reducer?) throws(ThalwegError) {
    let reduction = reducer.map { Reduction($0) }
    try checked { () throws(Failure) in
      guard let reduction else { return try runner.setRanks(nil) }
      try runner.setRanks(
        Ranks(
          { context, sums, count, maxima, maximumCount in
            guard let context else { return Int32(Status.argument) }
            let reduction = Unmanaged<Reduction>.fromOpaque(context).takeUnretainedValue()
            return reduction.reduce(
              UnsafeMutableBufferPointer(start: sums, count: count),
              UnsafeMutableBufferPointer(start: maxima, count: maximumCount))
          }, Unmanaged.passUnretained(reduction).toOpaque(), shards == .tensors ? .tensors : .elements))
    }
    self.reduction = reduction
  }

  /// What the reducer threw in the last step that it ended.
  public var reducerError: (any Error)? { reduction?.error }

  /// The host's reducer behind the signature of C.
  final class Reduction {
    private let reducer: Reducer
    private(set) var error: (any Error)?
    init(_ reducer: @escaping Reducer) { self.reducer = reducer }

    fileprivate func reduce(
      _ sums: UnsafeMutableBufferPointer<Double>, _ maxima: UnsafeMutableBufferPointer<Double>
    ) -> Int32 {
      do {
        try reducer(sums, maxima)
        return Int32(Status.ok)
      } catch {
        self.error = error
        return Int32(Status.argument)
      }
    }
  }
}
