// Read a stream with a .tflite file, in Kotlin on TensorFlow Lite or LiteRT.
//
// `prefill` reads whole chunks, and `step` reads single steps. Both take the input `x` and the
// state, and return the output `y` and the new state under the same names. The file needs
// state="tensors" and fixed sizes, for `runSignature` refuses signatures without inputs, such as
// `init` and `reset`.
//
//     val interpreter = Interpreter(File("model.tflite"))
//     var stream = Stream(interpreter, maxSteps = null) // one for each stream of data
//     stream.read("prefill", chunk, outputs)
//     stream.read("step", sample, output)
//     stream = Stream(interpreter, maxSteps = null) // begins a new stream

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

/** A stream. `maxSteps` is `max_steps` of the file's metadata, null for a stream without end. */
class Stream(private val interpreter: Interpreter, private val maxSteps: Long?) {
    private val sizes = interpreter.getSignatureInputs("step").filter { it != "x" }
        .associateWith { interpreter.getInputTensorFromSignature(it, "step").numBytes() }
    private var state = zeros()
    private var next = zeros()

    /** The number of steps that the stream has read. */
    var steps = 0L
        private set

    private fun zeros() =
        sizes.mapValues { ByteBuffer.allocateDirect(it.value).order(ByteOrder.nativeOrder()) }

    /**
     * Reads the next steps, as many as the signature takes. The buffers are direct and in native
     * order.
     */
    fun read(signature: String, x: ByteBuffer, y: ByteBuffer) {
        val count = interpreter.getInputTensorFromSignature("x", signature).shape()[1]
        require(maxSteps == null || steps + count <= maxSteps) {
            "The model's streams end after $maxSteps steps. Begin a new stream. " +
                "Received: $count more after $steps"
        }
        (state.values + next.values + x + y).forEach { it.rewind() }
        interpreter.runSignature(state + ("x" to x), next + ("y" to y), signature)
        state = next.also { next = state }
        steps += count
    }
}
