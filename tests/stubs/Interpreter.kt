package org.tensorflow.lite

import java.nio.ByteBuffer

class Tensor(private val shape: IntArray) {
    fun shape(): IntArray = shape

    fun numBytes(): Int = 4 * shape.fold(1, Int::times)
}

class Interpreter {
    fun getSignatureInputs(signatureKey: String): Array<String> =
        if (signatureKey == "step") arrayOf("x", "sum") else throw IllegalArgumentException()

    fun getInputTensorFromSignature(inputName: String, signatureKey: String): Tensor =
        Tensor(if (inputName == "sum") intArrayOf(1) else intArrayOf(1, steps(signatureKey)))

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signatureKey: String) {
        var total = (inputs.getValue("sum") as ByteBuffer).getFloat()
        for (i in 0 until steps(signatureKey)) {
            total += (inputs.getValue("x") as ByteBuffer).getFloat()
            (outputs.getValue("y") as ByteBuffer).putFloat(total)
        }
        (outputs.getValue("sum") as ByteBuffer).putFloat(total)
    }

    private fun steps(signatureKey: String) = if (signatureKey == "prefill") 4 else 1
}
