// PE_M x PE_N products, lane by lane: PE_N channels of PE_M pixels with one tap of each channel.
module depthwise_array #(parameter PE_M = 1, PE_N = 1, BITS = 8, SUM = 32) (
    input clk, input [PE_M*PE_N*BITS-1:0] a, input [PE_N*BITS-1:0] b,
    output [PE_M*PE_N*SUM-1:0] sum
);
    genvar i, j;
    generate for (i = 0; i < PE_M; i = i + 1) begin : row
        for (j = 0; j < PE_N; j = j + 1) begin : lane
            reg signed [2*BITS-1:0] product;
            always @(posedge clk)
                product <= $signed(a[(i*PE_N+j)*BITS +: BITS]) * $signed(b[j*BITS +: BITS]);
            assign sum[(i*PE_N+j)*SUM +: SUM] = {{(SUM-2*BITS){product[2*BITS-1]}}, product};
        end
    end endgenerate
endmodule
