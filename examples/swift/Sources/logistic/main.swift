// Logistic regression on a real data set, in Swift.
//
// Reads examples/data/breast_cancer.csv, trains on four fifths of the rows with AdamW, a warm-up and cosine schedule
// and an L1 prox, which makes useless weights exactly zero, and tests on the rest. Half way the state goes to a file;
// at the end a second optimizer starts from there and must arrive at the same bits.
//
//     swift run --package-path examples/swift [logistic breast_cancer.csv]
import Foundation
import Thalweg

let features = 30
let steps = 200
let sentence =
  "clip_global_norm(1.0) | adamw(lr=warmup_cosine(peak=0.05, warmup=20, total=200), weight_decay=0.01) "
  + "| prox(l1(0.05))"

struct Problem: Error, CustomStringConvertible {
  let description: String
}

/// Rows of measurements, and the class of each row (0 malignant, 1 benign).
struct DataSet {
  var x: [[Double]] = [], y: [Double] = []

  /// A header line, then one row a line. Every fifth row goes to the test set.
  static func read(_ path: String) throws -> (training: DataSet, test: DataSet) {
    var sets = (training: DataSet(), test: DataSet())
    let lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").dropFirst()
    for (i, line) in lines.enumerated() {
      let row = line.split(separator: ",").compactMap { Double($0) }
      guard row.count == features + 1 else { throw Problem(description: "row \(i + 1) is not understood") }
      if i % 5 == 0 { sets.test.add(row) } else { sets.training.add(row) }
    }
    return sets
  }
  private mutating func add(_ row: [Double]) {
    x.append(Array(row.dropLast()))
    y.append(row[features])
  }

  /// Shifts and scales each feature as it takes to have mean 0 and variance 1 in `other`.
  func standardised(by other: DataSet) -> DataSet {
    var out = self
    for j in 0..<features {
      let column = other.x.map { $0[j] }, n = Double(column.count), mean = column.reduce(0, +) / n
      let deviation = (column.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / n).squareRoot()
      for i in x.indices { out.x[i][j] = (x[i][j] - mean) / deviation }
    }
    return out
  }
}

/// The model, its gradient, and the optimizer that moves the one by the other.
struct Run {
  // The weights are a matrix of one row, so that the L1 prox takes them and leaves the bias alone.
  let w: Tensor, b: Tensor
  let dw: Tensor, db: Tensor
  let optimizer: Optimizer
  let objective: Objective

  init(w: [Double] = Array(repeating: 0, count: features), b: [Double] = [0]) throws {
    self.w = try Tensor(w, shape: [1, features], role: .weight)
    self.b = try Tensor(b, role: .bias)
    (dw, db) = (try Tensor(zeros: [1, features], dtype: .f64), try Tensor(zeros: [1], dtype: .f64))
    objective = try Objective("bce_with_logits")
    optimizer = try Optimizer(sentence)
    try optimizer.add(parameters: [self.w, self.b], names: ["weight", "bias"])
    try optimizer.bind(gradients: [dw, db])
  }

  func logits(_ data: DataSet) throws -> [Double] {
    let w: [Double] = try w.values(), b = try b.doubles()[0]
    return data.x.map { row in zip(row, w).reduce(b) { $0 + $1.0 * $1.1 } }
  }

  /// The mean loss on `data`; writes its gradient.
  func evaluate(_ data: DataSet) throws -> Double {
    let pass = try objective.forward([
      "z": Tensor(logits(data), shape: [data.y.count, 1]), "t": Tensor(data.y, shape: [data.y.count, 1]),
    ])
    let dz: [Double] = try pass.gradient(of: "z").values()
    var sum = [Double](repeating: 0, count: features)
    for (row, d) in zip(data.x, dz) { for j in 0..<features { sum[j] += d * row[j] } }
    try dw.assign(sum)
    try db.assign([dz.reduce(0, +)])
    return pass.value
  }

  func accuracy(_ data: DataSet) throws -> Double {
    let right = zip(try logits(data), data.y).count { ($0 > 0) == ($1 > 0.5) }
    return Double(right) / Double(data.y.count)
  }
}

func percent(_ x: Double) -> String { String(format: "%.1f %%", 100 * x) }

func main() throws -> Bool {
  let shipped = URL(fileURLWithPath: #filePath).appendingPathComponent("../../../../data/breast_cancer.csv")
    .standardized
  let (raw, rawTest) = try DataSet.read(CommandLine.arguments.dropFirst().first ?? shipped.path)
  let training = raw.standardised(by: raw), test = rawTest.standardised(by: raw)
  print("thalweg \(Library.version), \(training.y.count) rows to train on, \(test.y.count) to test on\n\(sentence)")

  // The first half, a checkpoint, the second half.
  let run = try Run()
  var loss = 0.0
  for step in 0..<steps / 2 {
    try run.optimizer.step {
      loss = try run.evaluate(training)
      return loss
    }
    if step % 50 == 0 {
      let next = try run.optimizer.number("adamw.lr")
      print(String(format: "step %3d   loss %.4f   next lr %.4f", step, loss, next))
    }
  }
  let checkpoint = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).safetensors").path
  defer { try? FileManager.default.removeItem(atPath: checkpoint) }
  try run.optimizer.save(to: checkpoint)
  let resumed = try Run(w: run.w.values(), b: run.b.values())
  for _ in steps / 2..<steps {
    try run.optimizer.step {
      loss = try run.evaluate(training)
      return loss
    }
  }

  // The second half once more, from the checkpoint.
  try resumed.optimizer.load(from: checkpoint)
  for _ in steps / 2..<steps { try resumed.optimizer.step { try resumed.evaluate(training) } }
  let same = try run.w.doubles() == resumed.w.doubles() && run.b.doubles() == resumed.b.doubles()

  for row in run.optimizer.state where row.parameter == 0 {
    print("state \(row.stage).\(row.slot): \(row.bytes) bytes")
  }
  let zeros = try run.w.doubles().count { $0 == 0 }, right = try run.accuracy(test)
  print(String(format: "loss %.4f, ", loss) + "\(zeros) of \(features) weights are zero")
  print("accuracy: \(percent(try run.accuracy(training))) in training, \(percent(right)) in the test")
  print("the resumed run has \(same ? "the same bits" : "OTHER BITS")")
  return same && right > 0.95
}

do {
  exit(try main() ? EXIT_SUCCESS : EXIT_FAILURE)
} catch {
  print(error)
  exit(EXIT_FAILURE)
}
