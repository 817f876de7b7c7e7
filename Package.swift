// swift-tools-version:6.1
import PackageDescription

// The instruction set comes from the command line (`-Xcc -march=...`, see the Makefile), so that one tree builds every
// variant. `-fno-math-errno` is what lets square roots vectorise. Exclusivity is checked by the compiler; the run-time
// checks would cost a small step a tenth of its time. The compiler would rather not use the widest vectors of x86-64-v4,
// which cost the 8-bit codecs a third.
let fast: [SwiftSetting] = [
  .unsafeFlags(["-Xcc", "-fno-math-errno", "-Xcc", "-mprefer-vector-width=512", "-enforce-exclusivity=unchecked"])
]
// Regular expressions, which nothing in the library uses, are half a megabyte of it.
let kernels: [SwiftSetting] =
  fast + [.unsafeFlags(["-Xfrontend", "-disable-implicit-string-processing-module-import"])]

// The pool's threads wait in the library's code, so that no dlclose may unmap it. Its small allocations have a reserve
// (CReserve), which a Swift program that links the modules does without.
let wrapped = ["malloc", "calloc", "realloc", "free", "posix_memalign", "malloc_usable_size", "_Znwm", "_ZdlPvm"]
let linking: [LinkerSetting] = [
  .linkedLibrary("stdc++", .when(platforms: [.linux])),
  .unsafeFlags((["-z", "nodelete"] + wrapped.map { "--wrap=\($0)" }).flatMap { ["-Xlinker", $0] }),
]

// Layers as modules: a method cannot name what runs it. The core's generic loops are compiled into the modules above
// it; a changed method compiles its module alone.
let inner: [SwiftSetting] = kernels + [.unsafeFlags(["-cross-module-optimization"], .when(configuration: .release))]
// Each is compiled as a whole: files share generic helpers, which would not be specialised from one to the other.
let families = ["ThalwegMatrix", "ThalwegSets", "ThalwegObjectives", "ThalwegSolvers"]

let package = Package(
  name: "thalweg",
  products: [
    .library(name: "thalweg", type: .dynamic, targets: ["ThalwegABI"]),
    .library(name: "Thalweg", targets: ["Thalweg"]),
  ],
  targets: [
    .target(name: "CThalweg", cSettings: [.headerSearchPath("../../include")]),
    .target(name: "COpenBLAS"),
    .target(name: "CReserve", dependencies: ["CThalweg"]),
    .target(name: "ThalwegCore", dependencies: ["CThalweg", "COpenBLAS"], swiftSettings: inner),
    .target(name: "ThalwegMethods", dependencies: ["ThalwegCore"], swiftSettings: kernels),
    .target(
      name: "ThalwegRunner", dependencies: ["ThalwegCore", "ThalwegMethods"] + families.map { .target(name: $0) },
      swiftSettings: kernels),
    .target(
      name: "ThalwegABI", dependencies: ["ThalwegRunner", "ThalwegCore", "CThalweg", "COpenBLAS", "CReserve"],
      swiftSettings: kernels, linkerSettings: linking),
    .target(name: "Thalweg", dependencies: ["ThalwegRunner", "ThalwegCore", "CThalweg"], swiftSettings: fast),
    .testTarget(
      name: "ThalwegTests",
      dependencies: ["ThalwegRunner", "ThalwegCore", "ThalwegMethods", "ThalwegABI"]
        + families.map { .target(name: $0) }),
    .testTarget(name: "SwiftAPITests", dependencies: ["Thalweg"]),
  ] + families.map { .target(name: $0, dependencies: ["ThalwegCore", "COpenBLAS"], swiftSettings: kernels) }
)
