import CThalweg
import ThalwegCore

/// A name compared byte by byte: two spellings of one accent are two names.
struct Exact: Hashable {
  let text: String
  init(_ text: String) { self.text = text }
  static func == (a: Exact, b: Exact) -> Bool { a.text.utf8.elementsEqual(b.text.utf8) }
  func hash(into h: inout Hasher) {
    var text = text
    text.withUTF8 { h.combine(bytes: UnsafeRawBufferPointer($0)) }
  }
}

/// The names of the parameter groups. The first is the default group, which has none.
package struct GroupNames: RandomAccessCollection {
  private var names = [""], places = [Exact(""): 0]
  package var startIndex: Int { 0 }
  package var endIndex: Int { names.count }
  package subscript(k: Int) -> String { names[k] }
  /// The number of the group with this name; nil: there is none.
  func place(of name: String) -> Int? { places[Exact(name)] }
  mutating func append(_ name: String) {
    places[Exact(name)] = names.count
    names.append(name)
  }
  /// Leaves the first n.
  mutating func keep(_ n: Int) { while names.count > n { places[Exact(names.removeLast())] = nil } }
}

/// One tensor as it was bound, for messages, introspection and checkpoints.
struct Bound {
  var view: View
  var name: String
  var group: Int
  var branch: Int
  var shape: Shape
}

/// A pipeline at work on bound tensors.
package final class Optimizer {
  package let stages: [Stage]
  package let branches: [Branch]
  /// The stages that decide how gradients are obtained, in the order of the sentence.
  let sources: [Stage]
  /// Keeps gradients between the sources of several pipelines of a route.
  let routeStage: Stage?
  let needsLoss: Bool
  /// Some stage refuses non-finite gradients whatever the policy.
  let needsFinite: Bool
  /// The same of the parameters as they stand before the step.
  let needsFiniteParameters: Bool
  private let stageMayFail: Bool
  /// A step may end in an error after something was changed: copies are kept.
  var mayFail: Bool { stageMayFail || ranks != nil }
  var ranks: Ranks?
  /// What went wrong when sums of ranks were added; the numbers that they were added in; the elements of each tensor on
  /// all ranks.
  var rankFailure: Failure?, reduced: [Double] = [], counts: [Int] = []
  let longestSegments: Int
  package var options: Options
  package internal(set) var groups = GroupNames()
  var bound: [Bound] = [], boundNames: Set<Exact> = []
  let allocator: Allocator

  var records: UnsafeMutablePointer<Record>
  var capacity = 0
  /// Arrays that records point into; freed with the optimizer.
  var holdings: [UnsafeMutableRawPointer] = []
  var arenas: [Memory] = []
  var scratch: [Memory] = []
  /// One a thread, like the work space of whole-tensor stages.
  var programs: [Program] = []
  var workspaces: [Memory] = []
  let threadBusy: UnsafeMutablePointer<Int64>
  static let mostThreads = 64

  struct Block { var tensor: Int32; var offset: Int; var count: Int }
  struct Task { var first: Int; var end: Int; var small: Bool }
  var blocks: UnsafeMutablePointer<Block>
  var blockCount = 0
  var tasks: [Task] = [], stripTasks: [StripTask] = []
  /// The marks of the tensors that are watched.
  var marks: [Memory] = []
  var partials: UnsafeMutablePointer<Double>
  var totals: UnsafeMutablePointer<Double>
  // Lists that steps fill again and again, so that a step allocates nothing.
  var columns = [[Double]](repeating: [], count: Sums.top)
  var applies: [Apply] = []
  var begun: [Bool] = []
  var leaders: [(group: Int, branch: Int, t: Int, isDouble: Bool, index: Int)] = []
  var totalled: [Int] = []
  var remade: [UnsafeMutableRawPointer] = []
  /// The place of each tensor among those of its group, while it is known.
  var inGroup: [Int] = []
  var planned = 0  // tensors with state and plan
  var carriage = Carriage.undecided
  var elements = 0

  package internal(set) var step = 0
  package internal(set) var skipped = 0
  /// Calls that were steps, were skipped, or only accumulated: each is another minibatch.
  var calls = 0
  /// Number of requests answered in the present step; −1 between steps.
  package internal(set) var phase = -1
  package internal(set) var evaluating = false
  /// The training weights, in evaluation mode.
  var backup: [Memory] = []
  var observed: [String: Double] = [:]
  var pending = Request()
  /// The step began with a request for the loss, which the source's own first request does not bring.
  var lossFirst = false
  var lossWindow = LossWindow()
  /// The last answer brought a loss.
  var lossIsNew = false
  var hasGradients = false
  /// The host leaves the gradients of this answer as they are until the step ends; slots that stand for such.
  var gradientsStay = false, loans: [Loan] = []
  /// Copies for steps that may fail, and of what: their memory stays from step to step; `hasSnapshot`: they are of this
  /// step.
  var snapshotTensors: [(tensor: Int, shadow: Bool)] = []
  /// Which tensors a step that fails may have changed, while plan, ranks and hyper-parameters stay; nil: not known.
  var risk: [Int]?
  var snapshot: [Memory] = [], snapshotState: [Region] = [], hasSnapshot = false
  /// The scalars of the sources as they were before the step, and the lasting state of those that do not decide.
  var sourceCopies: [Memory] = [], stateCopies: [Memory] = []
  /// The sources at work: the last one asked is on top.
  var stack: [Frame] = []
  /// The source that has sent its parameters home, where nothing has looked at them since.
  var returning: Int?
  /// While a source of a pipeline of a route is at work, that pipeline; and the gradient that a source before it handed
  /// on.
  var scope: Int?, incoming: GradientOperation?
  /// Tensors whose state started in the present step, and those that were shown a view for the first time.
  var startedNow: [Int] = [], shown: [Int] = []
  /// Where a request that was loaded wants the parameters, until a call looks at it.
  var places: [(tensor: Int, bits: Memory)] = []
  /// Parameters that the host had written over a view, and the stored tensor behind it, as they were before the step.
  var written: [(tensor: Int, bits: Memory, dense: Memory)] = []
  /// Iterates and master copies as they were before the step found that the host had written their parameters.
  var iterateCopies: [Memory] = [], iterates: [Region] = []
  /// Which tensors each source that touches flagged ones alone has memory for, and that memory.
  var flagged: [[Bool]] = [], flaggedMemory: Memory?, coming: Coming?
  /// What `allStateRows` made.
  var listed: (tensors: Int, rows: [StateRow]) = (-1, [])
  /// Where the parameters, the shadows and the gradients lie, for questions about shared memory.
  var placed = Overlap.Index(), shadowed = Overlap.Index()
  var gradients: [View] = []
  /// The host's answer to a request for matrices, until it is taken.
  var answered: Answer?
  /// The loss that an answer by name brought, until it is taken.
  package var told: Double?
  /// What a source keeps of an answer until the step ends.
  var kept: HostMatrix?
  /// The largest step size of this step, where a source sets it.
  var stepSize: Double?
  /// A checkpoint was loaded in the middle of a step; `knowsActive`: it told which tensors take part.
  var resumed = false, knowsActive = false
  /// Hyper-parameters that are one for all groups, and those in which groups must agree at a step.
  let shared: [Place], agreed: [Place]

  var probeList: [(shape: UnsafeMutablePointer<Int64>, ndim: Int)] = []
  var probeTensor: UnsafeMutablePointer<tw_tensor>?
  /// What tensors of other pipelines show in place of a vector.
  var probeZeros: Memory?
  var loss = Double.nan
  /// That of the parameters as the step found them, as far as it was told; NaN: it was not, or they are not where it is
  /// taken.
  var pointLoss = Double.nan
  /// weight_decay by group and branch, for rules that decay themselves.
  var decayOf: [Double] = []
  /// The largest step size of the rule's schedule in the same way, where a stage asks for it; else NaN.
  var peakOf: [Double] = []
  /// Step size and decoupled decay by group and branch, as the hyper-parameters say.
  var rates: [(lr: Double, decay: Double)] = []
  var sourceOperation: GradientOperation?
  /// The weights of the tasks in the last step, where its gradient was a weighted sum.
  var taskWeights: [Double]?

  package init(_ text: String, _ options: Options, _ allocator: Allocator) throws(Failure) {
    guard options.gradientScale.isFinite, options.gradientScale > 0 else {
      throw Failure(Status.range, "`gradient_scale` must be above 0, got \(options.gradientScale)")
    }
    let compiled = try Compiler(text)
    (stages, branches, sources, routeStage) = (
      compiled.stages, compiled.branches, compiled.sources, compiled.routeStage
    )
    needsLoss = stages.contains { $0.method.needsLoss }
    needsFinite = branches.contains { $0.needsFinite } || sources.contains { $0.method.needsFinite }
    needsFiniteParameters = branches.contains { $0.needsFiniteParameters }
    if options.master == .stochastic, let s = stages.first(where: { $0.method.refusesStochastic != nil }) {
      throw Failure(
        Status.argument, "\(s.name) does not go with master=stochastic: \(s.method.refusesStochastic ?? "")")
    }
    (shared, agreed) = (Optimizer.places(stages, .all), Optimizer.places(stages, .equal))
    stageMayFail = branches.contains { $0.mayFail }
    longestSegments = branches.map(\.segments.count).max() ?? 0
    (self.options, self.allocator) = (options, allocator)
    // Last: an initialiser that throws after an allocation would leak it.
    (records, capacity) = (.allocate(capacity: 1), 1)
    (blocks, partials, totals) = (.allocate(capacity: 1), .allocate(capacity: 1), .allocate(capacity: 1))
    threadBusy = .allocate(capacity: Optimizer.mostThreads)
    for i in 0..<Optimizer.mostThreads { threadBusy[i] = 0 }
  }

  deinit {
    if phase >= 0 { undo() }  // the host's parameters must not stay where a request had them
    for i in 0..<bound.count {
      records[i].x.release()
      records[i].g.release()
      records[i].shadow?.release()
    }
    records.deallocate()
    for p in holdings { p.deallocate() }
    blocks.deallocate()
    partials.deallocate()
    totals.deallocate()
    threadBusy.deallocate()
    for p in probeList { p.shape.deallocate() }
    probeTensor?.deallocate()
  }

  package var count: Int { bound.count }
}
